//! What an image says of itself.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::output;

/// Name, version and origin of an image.
#[derive(Clone, Debug)]
pub struct About {
    /// As it is pulled: `registry/name:tag`, or only `name:tag`.
    pub name: String,
    /// Of the workspace.
    pub version: String,
    /// Hash of the source's commit.
    pub commit: String,
    /// When the source was committed, in seconds since 1970: the time of everything in the image.
    pub epoch: u64,
}

impl About {
    /// What the Git repository at `source` says. `LODEN_COMMIT` and `SOURCE_DATE_EPOCH` go before it, for sources
    /// without one.
    ///
    /// # Errors
    /// When neither says anything.
    pub fn of_source(source: &Path, name: &str) -> Result<Self> {
        let git = |words: &[&str]| {
            let printed = output(Command::new("git").arg("-C").arg(source).args(words));
            let printed = printed.context(
                "without a Git repository, set LODEN_COMMIT and SOURCE_DATE_EPOCH (seconds since 1970) to those of the source",
            )?;
            Ok::<_, anyhow::Error>(printed.trim().to_owned())
        };
        let commit = match std::env::var("LODEN_COMMIT") {
            Ok(commit) => commit,
            Err(_) => {
                let commit = git(&["rev-parse", "HEAD"])?;
                let changed = !git(&["status", "--porcelain"])?.is_empty();
                if changed { format!("{commit}-changed") } else { commit }
            }
        };
        let epoch = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(epoch) => epoch,
            Err(_) => git(&["log", "-1", "--format=%ct"])?,
        };
        let epoch = epoch.parse().with_context(|| format!("{epoch:?} is no time in seconds since 1970"))?;
        Ok(Self { name: name.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned(), commit, epoch })
    }

    /// The name without registry and tag.
    pub fn title(&self) -> &str {
        let last = self.name.rsplit('/').next().unwrap_or(&self.name);
        last.split(':').next().unwrap_or(last)
    }

    /// The tag, or the version where the name has none.
    pub fn tag(&self) -> &str {
        let last = self.name.rsplit('/').next().unwrap_or(&self.name);
        last.split_once(':').map_or(&self.version, |(_, tag)| tag)
    }

    /// The name without its tag.
    pub fn repository(&self) -> &str {
        self.name.strip_suffix(&format!(":{}", self.tag())).unwrap_or(&self.name)
    }

    /// The name in full, as runtimes store it: `loden:1` is `docker.io/library/loden:1`.
    pub fn full_name(&self) -> String {
        let name = format!("{}:{}", self.repository(), self.tag());
        match self.name.split_once('/') {
            None => format!("docker.io/library/{name}"),
            Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name,
            Some(_) => format!("docker.io/{name}"),
        }
    }

    /// [`About::epoch`] as RFC 3339 has it.
    ///
    /// # Errors
    /// When it lies outside of what a calendar has.
    pub fn created(&self) -> Result<String> {
        Ok(jiff::Timestamp::from_second(i64::try_from(self.epoch)?)?.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let about = |name: &str| About {
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            commit: String::new(),
            epoch: 1_700_000_000,
        };
        for (name, title, tag, full) in [
            ("loden:1", "loden", "1", "docker.io/library/loden:1"),
            ("loden", "loden", "0.1.0", "docker.io/library/loden:0.1.0"),
            ("somebody/loden:1", "loden", "1", "docker.io/somebody/loden:1"),
            ("example.com/a/loden:1", "loden", "1", "example.com/a/loden:1"),
            ("localhost:5000/loden", "loden", "0.1.0", "localhost:5000/loden:0.1.0"),
        ] {
            let about = about(name);
            assert_eq!((about.title(), about.tag()), (title, tag), "{name}");
            assert_eq!(about.full_name(), full, "{name}");
        }
        assert_eq!(about("loden").created().unwrap(), "2023-11-14T22:13:20Z");
    }
}
