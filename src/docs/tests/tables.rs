//! The tables of the manual name what the code has, and nothing else.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use encap::DropReason;
use encap::offload::Feature;

use super::page::{Page, Row, code_spans, root};
use crate::commands;
use crate::config::{self, netconf};
use crate::dataplane::Shared;
use crate::lease::{Annotations, PodReason, Reason};
use crate::plan::Object;
use crate::report::Code;
use crate::telemetry::metrics::{Metrics, PASSES, SUBNET_ENV};

#[test]
fn flags() {
    let rows = Page::manual("configuration.md").rows("Command line");
    let command = config::command_line(commands::clap_commands());
    let flags: Vec<&clap::Arg> = arguments(&command).collect();
    same("flag", rows.iter().map(Row::name), flags.iter().filter_map(|arg| arg.get_long()).map(dashed));
    for arg in flags {
        let Some(name) = arg.get_long().map(dashed) else { continue };
        let row = rows.iter().find(|row| row.name() == name).unwrap();
        let default: Vec<_> = arg.get_default_values().iter().filter_map(|value| value.to_str()).collect();
        assert_eq!(row.0[1].trim_matches('`'), default.join(","), "default of {name}");
    }
}

#[test]
fn commands_and_their_flags() {
    let rows = Page::manual("operations.md").rows("Commands");
    let command = config::command_line(commands::clap_commands());
    let verb = |row: &Row| row.name().split(' ').nth(1).unwrap_or_default().to_owned();
    same("command", rows.iter().map(verb), command.get_subcommands().map(|sub| sub.get_name().to_owned()));
    for row in &rows {
        let sub = command.find_subcommand(verb(row)).unwrap();
        let text = row.0.join(" ");
        // These go for many of them, and stand beside the table.
        let shared = ["subnet-file", "timeout", "output", "no-color"];
        for flag in arguments(sub).filter_map(clap::Arg::get_long).filter(|long| !shared.contains(long)) {
            assert!(text.contains(&dashed(flag)), "flanneld {} has --{flag}: {text}", sub.get_name());
        }
    }
}

#[test]
fn variables_of_the_environment() {
    /// Read by libraries, or by nobody.
    const NOT_ASKED: [&str; 6] = [
        "KUBERNETES_SERVICE_HOST",
        "KUBERNETES_SERVICE_PORT",
        "NOTIFY_SOCKET",
        "WIREGUARD_KEY_FILE",
        "ACCESS_KEY_ID",
        "ACCESS_KEY_SECRET",
    ];
    let asked = RefCell::new(BTreeSet::new());
    let env = |name: &str| {
        asked.borrow_mut().insert(name.to_owned());
        // One is asked for only where the one before is there.
        name.starts_with("POD_").then(|| "x".to_owned())
    };
    config::parse(["flanneld".into()], &env, []).unwrap();
    let asked = asked.into_inner().into_iter().filter(|name| !name.starts_with("FLANNELD_"));
    let rows = Page::manual("configuration.md").rows("Environment");
    same("variable", rows.iter().map(Row::name), asked.chain(NOT_ASKED.map(str::to_owned)));
}

#[test]
fn keys_of_net_conf_json() {
    let page = Page::manual("configuration.md");
    // Keys of the object Backend have one column more, which says of what they are.
    let (backend, top): (Vec<Row>, Vec<Row>) =
        page.rows("net-conf.json").into_iter().partition(|row| row.0.len() == 5);
    same("key", top.iter().map(Row::name), netconf::keys().iter().map(|key| (*key).to_owned()));
    let listed = backend.iter().flat_map(|row| {
        code_spans(&row.0[1]).into_iter().map(|backend| format!("{backend}: {}", row.name()))
    });
    let read = crate::backend::keys();
    let read = read.iter().flat_map(|(name, keys)| keys.iter().map(move |key| format!("{name}: {key}")));
    same("key of Backend", listed, read);
}

#[test]
fn annotations() {
    let rows = Page::manual("configuration.md").rows("Node annotations");
    let serde_json::Value::Object(known) = serde_json::to_value(Annotations::default()).unwrap() else {
        panic!()
    };
    same("annotation", rows.iter().map(Row::name), known.keys().map(|name| name.replace('_', "-")));
}

#[test]
fn offloads() {
    let row = Page::manual("configuration.md").rows("Environment");
    let row = row.into_iter().find(|row| row.name() == "LODEN_OFFLOAD_DISABLE").unwrap();
    let names = Feature::ALL.map(|feature| feature.as_str().to_owned());
    same("offload", code_spans(&row.0[1]), names.into_iter().chain(["all".to_owned()]));
}

#[test]
fn drop_reasons() {
    let rows = Page::manual("metrics.md").rows("Drop reasons");
    same("reason", rows.iter().map(Row::name), DropReason::ALL.map(|reason| reason.as_str().to_owned()));
}

#[test]
fn reasons_of_refusals() {
    let page = Page::manual("metrics.md");
    let rows = page.rows("Why a node is refused");
    same("reason", rows.iter().map(Row::name), Reason::LABELS.map(str::to_owned));
    let pods = values(&page.rows("Nodes"), "loden_refused_pods");
    same("reason", pods.iter().map(String::as_str), PodReason::LABELS.map(str::to_owned));
}

/// Each code has a section, whose text begins with how severe it usually is.
#[test]
fn codes_of_concerns() {
    let page = Page::manual("operations.md");
    let sections = page.headings().into_iter().skip_while(|(_, title)| *title != "Concerns").skip(1);
    let codes: Vec<&str> = sections.take_while(|(level, _)| *level == 3).map(|(_, title)| title).collect();
    same("code", codes, Code::ALL.iter().map(|code| code.as_str().to_owned()));
    for code in Code::ALL {
        let (_, text) = page.text.split_once(&format!("\n### {}\n\n", code.as_str())).unwrap();
        let severity = code.severity().as_str();
        assert!(text.starts_with(&format!("`{severity}`. ")), "{} is {severity}", code.as_str());
    }
}

#[test]
fn labels_of_the_kernels_metrics() {
    let rows = Page::manual("metrics.md").rows("Kernel");
    let objects = Object::ALL.iter().map(|object| object.as_str().to_owned()).chain([SUBNET_ENV.to_owned()]);
    same("object", values(&rows, "loden_repairs_total").iter().map(String::as_str), objects);
    let passes = PASSES.map(str::to_owned);
    let listed: BTreeSet<String> = values(&rows, "loden_kernel_passes_total").into_iter().collect();
    same("result", listed.iter().map(String::as_str), passes);
}

/// A metric without a label's value is not gathered yet, so names are also looked for in the source.
#[test]
fn metrics() {
    let page = Page::manual("metrics.md");
    let rows: Vec<Row> =
        ["Packets", "Nodes", "Kernel", "The daemon"].iter().flat_map(|title| page.rows(title)).collect();
    let bare = |name: &str| name.split('{').next().unwrap_or_default().to_owned();
    let mut names = BTreeSet::new();
    quoted(&root().join("src"), "loden_", &mut names);
    same("metric", rows.iter().map(|row| bare(row.name())), names);

    let listed: BTreeMap<String, (&str, &str)> =
        rows.iter().map(|row| (bare(row.name()), (row.name(), row.0[1].as_str()))).collect();
    let scraped = scraped();
    assert!(scraped.len() > 30, "only {} metrics have a value", scraped.len());
    for (name, labelled, kind) in &scraped {
        assert_eq!(listed[name], (labelled.as_str(), kind.as_str()), "{name}");
    }
}

/// What a scrape has from the start: name, name with labels, and type of each of our metrics.
fn scraped() -> Vec<(String, String, String)> {
    let shared = Shared::new(encap::SourceCheck::Enforce, 8285, 1);
    let metrics = Metrics::new(shared, true, &Reason::LABELS).unwrap();
    let _registered = metrics.api(&["refused"]).unwrap();
    let text = metrics.render().unwrap();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE loden_")?.split_once(' '));
    types
        .map(|(name, kind)| (format!("loden_{name}"), kind))
        .map(|(name, kind)| {
            let labelled = labelled(&text, &name);
            (name, labelled, kind.to_owned())
        })
        .collect()
}

/// A metric's name with the names of its labels, as the page writes it.
fn labelled(text: &str, name: &str) -> String {
    let series = text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.strip_prefix("_bucket").unwrap_or(rest).strip_prefix('{')?.split('}').next()
    });
    let pairs = series.unwrap_or_default().split(',').filter_map(|pair| pair.split('=').next());
    let mut labels: Vec<&str> = pairs.filter(|label| !["", "le"].contains(label)).collect();
    labels.sort_unstable();
    if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) }
}

/// The values in backticks that a metric's row gives for its label.
fn values(rows: &[Row], metric: &str) -> Vec<String> {
    let row = rows.iter().find(|row| row.name().starts_with(metric)).unwrap();
    code_spans(&row.0[2]).into_iter().filter(|name| !name.starts_with('-')).map(str::to_owned).collect()
}

/// Whole string literals that begin with `prefix`, in the code below `directory` that is not a test.
fn quoted(directory: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if name.ends_with("tests") {
            continue;
        } else if path.is_dir() {
            quoted(&path, prefix, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.split('"').filter(|part| part.starts_with(prefix));
            let is_name = |part: &&str| part.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            found.extend(names.filter(is_name).map(str::to_owned));
        }
    }
}

fn arguments(command: &clap::Command) -> impl Iterator<Item = &clap::Arg> {
    command.get_arguments().filter(|arg| arg.get_id() != "help")
}

fn dashed(long: &str) -> String {
    format!("--{long}")
}

/// What a page lists is what the code has, and nothing is listed twice.
#[track_caller]
fn same<T: Into<String>>(
    what: &str,
    listed: impl IntoIterator<Item = T>,
    has: impl IntoIterator<Item = String>,
) {
    let listed: Vec<String> = listed.into_iter().map(Into::into).collect();
    let once: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(once.len(), listed.len(), "a {what} is listed twice: {listed:?}");
    let has: BTreeSet<String> = has.into_iter().collect();
    let missing: Vec<_> = has.difference(&once).collect();
    let extra: Vec<_> = once.difference(&has).collect();
    assert!(missing.is_empty(), "the manual lacks this {what}: {missing:?}");
    assert!(extra.is_empty(), "the manual names a {what} that does not exist: {extra:?}");
}
