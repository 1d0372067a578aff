//! The environment: `FLANNELD_<FLAG>` for every flag, and the variables a DaemonSet sets.

use std::ffi::{OsStr, OsString};

use clap::Command;
use clap::error::ContextKind;
use encap::offload::Features;

use super::{DaemonArgs, Run, argv, excerpt, offload};

/// Which pod we run in, from the downward API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIdentity {
    /// `POD_NAME`.
    pub name: String,
    /// `POD_NAMESPACE`.
    pub namespace: String,
}

/// Flags the environment cannot set. `FLANNELD_VERSION` is what people call the image's tag.
const NEVER: [&str; 2] = ["help", "version"];

/// Adds to `line` a flag for each `FLANNELD_*` variable whose flag was not given, and returns what
/// it had to ignore. A variable that is empty counts as absent, as in flannel.
pub(super) fn fill(
    root: &Command,
    line: &mut argv::Line,
    env: &impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let command = match &line.subcommand {
        None => root,
        Some(name) => match root.find_subcommand(name) {
            Some(sub) => sub,
            None => return warnings,
        },
    };
    for long in command.get_arguments().filter_map(clap::Arg::get_long) {
        // A subcommand shares the daemon's environment only where it shares the daemon's files.
        let applies = line.subcommand.is_none() || long == "subnet-file";
        if !applies || NEVER.contains(&long) || line.named.contains(long) {
            continue;
        }
        let variable = variable(long);
        let Some(value) = env(&variable).filter(|value| !value.is_empty()) else { continue };
        let token = argv::flag(OsStr::new(long), Some(OsStr::new(&value)));
        if line.subcommand.is_none() {
            // Tried alone: one bad variable must not take the good ones with it.
            let alone = [OsString::from("flanneld"), token.clone()];
            if let Err(error) = root.clone().try_get_matches_from(alone) {
                warnings.push(ignored(&variable, &value, &error));
                continue;
            }
        }
        line.args.insert(line.flags_at, token);
    }
    warnings
}

/// `iface-regex` is `FLANNELD_IFACE_REGEX`.
fn variable(long: &str) -> String {
    format!("FLANNELD_{}", long.to_ascii_uppercase().replace('-', "_"))
}

fn ignored(variable: &str, value: &str, error: &clap::Error) -> String {
    use std::error::Error as _;
    // A parser of ours says why; a choice of words has only the words.
    let reason = match (error.source(), error.get(ContextKind::ValidValue)) {
        (Some(source), _) => source.to_string(),
        (None, Some(words)) => format!("write one of {words}"),
        (None, None) => "not a value this flag takes".to_owned(),
    };
    format!("environment variable {variable}={} is ignored: {reason}; correct it or unset it", excerpt(value))
}

/// Adds what the environment says about where we run.
pub(super) fn identify(
    args: DaemonArgs,
    env: &impl Fn(&str) -> Option<String>,
    warnings: &mut Vec<String>,
) -> Run {
    let get = |name: &str| env(name).filter(|value| !value.is_empty());
    if let Some(depth) = get("EVENT_QUEUE_DEPTH")
        && !depth.parse::<u32>().is_ok_and(|depth| depth > 0)
    {
        warnings.push(format!(
            "environment variable EVENT_QUEUE_DEPTH={} is not a whole number above 0; it has no effect here, so unset it",
            excerpt(&depth)
        ));
    }
    let list = get("LODEN_OFFLOAD_DISABLE").unwrap_or_default();
    let (offloads, unknown) = offload::without(&list);
    if !unknown.is_empty() {
        warnings.push(format!(
            "environment variable LODEN_OFFLOAD_DISABLE names {}, which is no offload; write some of {}, or all",
            excerpt(&unknown.join(",")),
            Features::ALL
        ));
    }
    Run {
        args,
        offloads,
        node_name: get("NODE_NAME").map(|name| name.trim().to_owned()),
        pod: get("POD_NAME")
            .zip(get("POD_NAMESPACE"))
            .map(|(name, namespace)| PodIdentity { name, namespace }),
        continue_when_cache_not_ready: get("CONT_WHEN_CACHE_NOT_READY").is_some_and(|value| value == "true"),
    }
}
