//! Debian's packages for any machine, from the sources that this machine's apt trusts. Nothing is installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::digest::sha256;
use crate::platform::Platform;
use crate::run::{output, run};
use crate::userland::{PACKAGES, Package};

/// Downloads [`PACKAGES`] and all that they depend on, each unpacked below `dir`.
///
/// # Errors
/// When this machine has no apt, or apt cannot download a package; with what it said.
pub fn fetch(platform: Platform, dir: &Path) -> Result<Vec<Package>> {
    let archives = dir.join("cache/archives");
    for folder in ["state/lists/partial", "cache/archives/partial"] {
        let folder = dir.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-y"]);
        for option in options(platform, dir) {
            command.arg("-o").arg(option);
        }
        run(command.args(words)).context(
            "the image's iptables comes from Debian's packages, by the apt of a Debian or Ubuntu machine",
        )
    };
    apt(&["update"])?;
    apt(&[&["install", "--download-only", "--no-install-recommends"][..], &PACKAGES].concat())?;

    let mut packages = Vec::new();
    for entry in fs::read_dir(&archives).with_context(|| format!("list {}", archives.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            packages.push(unpack(&path, &dir.join("unpacked"))?);
        }
    }
    ensure!(!packages.is_empty(), "apt-get downloaded nothing into {}", archives.display());
    packages.sort();
    Ok(packages)
}

/// apt with a state of its own: an empty machine of that kind, on which everything is still to be installed.
fn options(platform: Platform, dir: &Path) -> Vec<String> {
    let dir = dir.display();
    vec![
        format!("APT::Architecture={}", platform.name()),
        format!("APT::Architectures={}", platform.name()),
        format!("Dir::State={dir}/state"),
        "Dir::State::status=/dev/null".to_owned(),
        format!("Dir::Cache={dir}/cache"),
        "Acquire::Languages=none".to_owned(),
        // Its own user could not read a folder of ours.
        "APT::Sandbox::User=root".to_owned(),
        "Debug::NoLocking=1".to_owned(),
    ]
}

fn unpack(file: &Path, into: &Path) -> Result<Package> {
    let field = |name: &str| -> Result<String> {
        Ok(output(Command::new("dpkg-deb").arg("--field").arg(file).arg(name))?.trim().to_owned())
    };
    let (name, version) = (field("Package")?, field("Version")?);
    let dir = into.join(&name);
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    run(Command::new("dpkg-deb").arg("--extract").arg(file).arg(&dir))?;
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    Ok(Package { name, version, sha256: sha256(&bytes), dir })
}

/// This machine's distribution and its release, as package URLs name them.
pub fn distribution() -> Result<(String, String)> {
    let text = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or("unknown").trim_matches('"').to_owned()
    };
    Ok((value("ID"), value("VERSION_CODENAME")))
}
