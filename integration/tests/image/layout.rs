//! What is in the image, read back with the types of the specification.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use loden_image::about::About;
use loden_image::contents::{self, Ours};
use loden_image::digest::sha256;
use loden_image::layout::{Image, Part, assemble};
use loden_image::platform::Platform;
use loden_image::userland::{self, Package};
use loden_image::{elf, sbom};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tar::EntryType;

/// A program built here, without what only a debugger reads.
fn program(name: &str, dir: &Path) -> Result<Vec<u8>> {
    let built = integration::daemon::binary()?.with_file_name(name);
    let stripped = dir.join(name);
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(&built).status()?;
    ensure!(status.success(), "strip {}: {status}", built.display());
    Ok(std::fs::read(stripped)?)
}

/// This machine's own programs: setup has installed iptables.
fn machine() -> Package {
    Package { name: "machine".into(), version: "1+1".into(), sha256: String::new(), dir: "/".into() }
}

fn about() -> About {
    About {
        name: "registry.example/loden:v1".into(),
        version: "0.1.0".into(),
        commit: "0123abc".into(),
        epoch: 1_700_000_000,
    }
}

/// An image of this build for this machine.
fn image(dir: &Path) -> Result<Image> {
    let platform = Platform::here().context("no image is made for this kind of machine")?;
    let (debian, used) = userland::collect(&[machine()], platform)?;
    let crates = sbom::crates(Path::new(env!("CARGO")), &workspace(), platform)?;
    let vendor = ("debian".to_owned(), "bookworm".to_owned());
    let sbom = sbom::document(&about(), platform, &crates, &used, &vendor)?;
    let ours = Ours { daemon: program("flanneld", dir)?, plugin: program("flannel", dir)?, sbom };
    assemble(
        &about(),
        &[Part { platform, layers: vec![("programs", debian), ("ours", contents::tree(ours))] }],
    )
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Regular files of a tar by their paths.
fn files(tar: impl std::io::Read) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type() == EntryType::Regular {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(entry.path()?.display().to_string(), bytes);
        }
    }
    Ok(files)
}

/// What a descriptor names, which has to be there with this size and hash.
fn blob<'f>(files: &'f BTreeMap<String, Vec<u8>>, descriptor: &Descriptor) -> Result<&'f [u8]> {
    let bytes = files
        .get(&format!("blobs/sha256/{}", descriptor.digest().digest()))
        .with_context(|| format!("{} is not there", descriptor.digest()))?;
    ensure!(bytes.len() as u64 == descriptor.size(), "the size of {}", descriptor.digest());
    ensure!(sha256(bytes) == descriptor.digest().digest(), "the hash of {}", descriptor.digest());
    Ok(bytes)
}

fn read<T: DeserializeOwned>(files: &BTreeMap<String, Vec<u8>>, descriptor: &Descriptor) -> Result<T> {
    Ok(serde_json::from_slice(blob(files, descriptor)?)?)
}

#[test]
fn it_is_the_same_twice_and_holds_what_a_node_needs() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = image(dir.path())?;
    ensure!(self::image(dir.path())?.archive == image.archive, "two images of the same files differ");

    let files = files(image.archive.as_slice())?;
    ensure!(files.get("oci-layout").is_some_and(|text| text == br#"{"imageLayoutVersion":"1.0.0"}"#));
    let outermost: ImageIndex = serde_json::from_slice(files.get("index.json").context("index.json")?)?;
    let [named] = outermost.manifests().as_slice() else { anyhow::bail!("{outermost:?}") };
    let names = named.annotations().as_ref().context("no name")?;
    ensure!(names["org.opencontainers.image.ref.name"] == "v1");
    ensure!(names["io.containerd.image.name"] == "registry.example/loden:v1");
    ensure!(named.digest().to_string() == image.digest);
    let index: ImageIndex = read(&files, named)?;
    let [entry] = index.manifests().as_slice() else { anyhow::bail!("{index:?}") };
    let platform = Platform::here().context("platform")?;
    ensure!(entry.platform().as_ref().is_some_and(|found| *found.architecture() == platform.architecture()));

    let manifest: ImageManifest = read(&files, entry)?;
    let config: ImageConfiguration = read(&files, manifest.config())?;
    let run = config.config().as_ref().context("no configuration")?;
    ensure!(run.entrypoint().as_ref().is_some_and(|words| words == &["/opt/bin/flanneld"]));
    ensure!(
        run.env().as_ref().is_some_and(|env| env[0].starts_with("PATH=/opt/bin:")),
        "flanneld is not in PATH"
    );
    let labels = run.labels().as_ref().context("no labels")?;
    for (key, value) in [
        ("version", "0.1.0"),
        ("revision", "0123abc"),
        ("title", "loden"),
        ("created", "2023-11-14T22:13:20Z"),
    ] {
        let found = labels.get(&format!("org.opencontainers.image.{key}"));
        ensure!(found.is_some_and(|found| found == value), "{key}: {found:?}");
    }
    ensure!(manifest.layers().len() == config.rootfs().diff_ids().len());

    // A Docker that knows no index finds the same.
    let docker: Value = serde_json::from_slice(files.get("manifest.json").context("manifest.json")?)?;
    ensure!(docker[0]["RepoTags"][0] == "registry.example/loden:v1");
    ensure!(files.contains_key(docker[0]["Config"].as_str().context("Config")?));

    let root = dir.path().join("root");
    for (layer, id) in manifest.layers().iter().zip(config.rootfs().diff_ids()) {
        ensure!(*layer.media_type() == MediaType::ImageLayerGzip);
        let mut tar = Vec::new();
        GzDecoder::new(blob(&files, layer)?).read_to_end(&mut tar)?;
        ensure!(
            *id == format!("sha256:{}", sha256(&tar)),
            "the layer is another than the configuration says"
        );
        let mut archive = tar::Archive::new(tar.as_slice());
        for entry in archive.entries()? {
            let header = entry?.header().clone();
            ensure!(header.mtime()? == 1_700_000_000 && header.uid()? == 0 && header.gid()? == 0);
            ensure!(header.mode()? & 0o7022 == 0 || header.entry_type() == EntryType::Symlink, "{header:?}");
        }
        tar::Archive::new(tar.as_slice()).unpack(&root)?;
    }
    paths(&root)?;
    alone(&root)
}

/// Where flannel's manifests look for things, and what they are.
fn paths(root: &Path) -> Result<()> {
    let opened = |path: &str| std::fs::read(root.join(path)).with_context(|| format!("/{path}"));
    let target = |path: &str| std::fs::read_link(root.join(path)).with_context(|| format!("/{path}"));
    let daemon = opened("opt/bin/flanneld")?;
    ensure!(daemon.starts_with(b"\x7fELF") && opened("flannel")?.starts_with(b"\x7fELF"));
    for link in ["opt/bin/install-conf", "bin/cp"] {
        ensure!(target(link)? == Path::new("/opt/bin/flanneld"), "/{link}");
    }
    for name in ["iptables", "ip6tables"] {
        for verb in ["", "-save", "-restore"] {
            for (kind, program) in [("-nft", "xtables-nft-multi"), ("-legacy", "xtables-legacy-multi")] {
                let link = target(&format!("usr/sbin/{name}{kind}{verb}"))?;
                ensure!(link == Path::new(program), "{name}{kind}{verb} is {}", link.display());
            }
        }
    }
    let sbom: Value = serde_json::from_slice(&opened("usr/share/doc/loden/loden.spdx.json")?)?;
    ensure!(sbom["spdxVersion"] == "SPDX-2.3");
    let parts = sbom["packages"].as_array().context("no packages")?;
    let ids: BTreeSet<&str> = parts.iter().filter_map(|part| part["SPDXID"].as_str()).collect();
    ensure!(ids.len() == parts.len(), "an identifier is there twice");
    let purl = |part: &Value| part["externalRefs"][0]["referenceLocator"].as_str().map(str::to_owned);
    let purls: BTreeSet<String> = parts.iter().filter_map(purl).collect();
    for part in ["pkg:cargo/loden@0.1.0", "pkg:cargo/kube@", "pkg:deb/debian/machine@1%2B1?arch="] {
        ensure!(purls.iter().any(|purl| purl.starts_with(part)), "{part} is in no package: {purls:?}");
    }
    ensure!(!purls.iter().any(|purl| purl.contains("proptest")), "tests are no part of the image");
    Ok(())
}

/// The programs that `flanneld` runs find all their libraries in the image, and so does everything that they load.
fn alone(root: &Path) -> Result<()> {
    let libraries: BTreeSet<String> = walk(root)?
        .iter()
        .filter_map(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
        .collect();
    let (ours, mut checked) = ([root.join("opt/bin/flanneld"), root.join("flannel")], 0);
    for path in walk(root)?.iter().filter(|path| !ours.contains(path)) {
        let Some(needs) = elf::needs(&std::fs::read(path)?)? else { continue };
        checked += 1;
        if let Some(loader) = needs.loader {
            ensure!(root.join(loader.trim_start_matches('/')).exists(), "{loader} of {}", path.display());
        }
        for library in needs.libraries {
            ensure!(libraries.contains(&library), "{} needs {library}", path.display());
        }
    }
    ensure!(checked > 50, "only {checked} programs and libraries");
    for program in ["iptables-nft-restore", "ip6tables-legacy-save", "iptables"] {
        let path = format!("/usr/sbin/{program}");
        let output = Command::new("unshare")
            .args(["--map-root-user", "--root"])
            .arg(root)
            .args([path.as_str(), "--version"])
            .env_clear()
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && said.contains(" v"), "{program}: {output:?}");
    }
    Ok(())
}

/// Regular files below a folder.
fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(walk(&entry.path())?);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}
