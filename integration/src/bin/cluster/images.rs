//! Container images without a container engine: folders, packed into the archives that `ctr images import` takes.
//!
//! All images of the cluster share two layers: Debian's programs (busybox, curl, dig, nft) and upstream's agnhost. An archive
//! depends on nothing but the programs in it, so it is kept beside them and made again only when they change.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use integration::apiserver::folder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::spec::write;

/// What every pod's sandbox runs.
pub(crate) const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// Upstream's image for tests.
pub(crate) const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// The cluster's DNS server.
pub(crate) const COREDNS: &str = "registry.k8s.io/coredns/coredns:loden";
/// The image that the shipped manifest names.
pub(crate) const FLANNELD: &str = "docker.io/library/loden:0.1.0";

/// What upstream's network tests expect to be able to pull, beside agnhost: a shell with network tools.
const TOOLS: [&str; 2] = [
    "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0",
    "registry.k8s.io/e2e-test-images/busybox:1.37.0-1",
];

struct Blob {
    digest: String,
    size: u64,
}

/// An archive being made: an OCI image layout, packed at the end.
struct Archive {
    dir: tempfile::TempDir,
    manifests: Vec<Value>,
}

/// The archive of everything but our own image, made if it is not cached.
///
/// # Errors
/// When a program is missing, or the disk is full.
pub(crate) fn cluster_archive() -> Result<PathBuf> {
    let sources = [folder("userland")?, folder("kubernetes")?, folder("coredns")?];
    let cache = sources[0].parent().context("the cache has no parent folder")?;
    // What goes in, and how: the names of these folders are of what is in them, and this file is the recipe.
    let mut key = Sha256::new_with_prefix(include_str!("images.rs"));
    sources.iter().for_each(|dir| key.update(dir.as_os_str().as_encoded_bytes()));
    let key: String = key.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let path = cache.join(format!("images-{key}.tar"));
    if path.exists() {
        return Ok(path);
    }
    forget_archives(cache);
    let mut archive = Archive::new(cache)?;
    let tools = archive.layer(stage_userland)?;
    let agnhost = archive.layer(stage_agnhost)?;
    let coredns = archive.layer(|root| copy(&folder("coredns")?.join("coredns"), &root.join("coredns")))?;
    archive.image(PAUSE, &[&agnhost], &["/agnhost"], &["pause"])?;
    archive.image(AGNHOST, &[&tools, &agnhost], &["/agnhost"], &["pause"])?;
    archive.image(COREDNS, &[&coredns], &["/coredns"], &[])?;
    for name in TOOLS {
        archive.image(name, &[&tools], &[], &["/bin/sh"])?;
    }
    archive.pack(&path)?;
    Ok(path)
}

/// Removes archives of other recipes, each of some hundred MiB. A cluster that runs has its own link to the one it needs.
fn forget_archives(cache: &Path) {
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("images-") && name.ends_with(".tar") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Our own image from the `flanneld` at `binary` and the plugin beside it, as `make image` makes it, but with all of the
/// userland, from which programs that are no release build load their libraries.
///
/// # Errors
/// When the disk is full.
pub(crate) fn flanneld_archive(binary: &Path, to: &Path) -> Result<()> {
    let mut archive = Archive::new(to.parent().context("an archive in no folder")?)?;
    let tools = archive.layer(stage_userland)?;
    let flanneld = archive.layer(|root| {
        std::fs::create_dir_all(root.join("opt/bin"))?;
        symlink("flanneld", root.join("opt/bin/install-conf"))?;
        copy(&binary.with_file_name("flannel"), &root.join("flannel"))?;
        copy(binary, &root.join("opt/bin/flanneld"))
    })?;
    archive.image(FLANNELD, &[&tools, &flanneld], &["/opt/bin/flanneld"], &[])?;
    archive.pack(to)
}

/// agnhost as upstream's image has it: beside its certificate, under a second name, and with a place for uploads.
fn stage_agnhost(root: &Path) -> Result<()> {
    let kubernetes = folder("kubernetes")?;
    for file in ["agnhost", "localhost.crt", "localhost.key"] {
        copy(&kubernetes.join(file), &root.join(file))?;
    }
    symlink("agnhost", root.join("agnhost-2"))?;
    std::fs::create_dir(root.join("uploads"))?;
    Ok(())
}

/// Debian's programs as their packages hold them, and busybox under the names of all that it can do and they lack.
fn stage_userland(root: &Path) -> Result<()> {
    let userland = folder("userland")?;
    run(Command::new("cp").arg("-a").arg(userland.join("root/.")).arg(root))?;
    // Debian chooses between two netcats when they are installed; upstream's tests want this one's options.
    symlink("nc.openbsd", root.join("bin/nc")).context("link nc")?;
    // Busybox's own shell runs its own programs, its lesser nc among them, whatever lies on PATH.
    symlink("bash", root.join("bin/sh")).context("link sh")?;
    let busybox = root.join("bin/busybox");
    let applets = run(Command::new(&busybox).arg("--list"))?;
    for applet in applets.lines() {
        let places = ["bin", "sbin", "usr/bin", "usr/sbin"].map(|dir| root.join(dir).join(applet));
        if places.iter().all(|place| place.symlink_metadata().is_err()) {
            symlink("/bin/busybox", &places[0]).with_context(|| format!("link {applet}"))?;
        }
    }
    // Debian's packages choose between nftables and the old kernel interface when they are installed.
    for name in
        ["iptables", "ip6tables", "iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"]
    {
        let _ = std::fs::remove_file(root.join("usr/sbin").join(name));
        symlink("xtables-nft-multi", root.join("usr/sbin").join(name))
            .with_context(|| format!("link {name}"))?;
    }
    write(&root.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
    write(
        &root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    write(&root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    for dir in ["tmp", "root", "proc", "sys", "dev", "run"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

impl Archive {
    fn new(beside: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(".images-").tempdir_in(beside)?;
        std::fs::create_dir_all(dir.path().join("blobs/sha256"))?;
        write(&dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { dir, manifests: Vec::new() })
    }

    /// A layer of what `stage` puts into an empty folder.
    fn layer(&self, stage: impl FnOnce(&Path) -> Result<()>) -> Result<Blob> {
        let root = tempfile::tempdir_in(self.dir.path())?;
        stage(root.path())?;
        let tar = self.dir.path().join("layer.tar");
        let pack = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"];
        run(Command::new("tar").args(pack).arg(&tar).arg("-C").arg(root.path()).arg("."))?;
        self.adopt(&tar)
    }

    /// An image that runs `entrypoint`, with `arguments` unless a pod gives others.
    fn image(&mut self, name: &str, layers: &[&Blob], entrypoint: &[&str], arguments: &[&str]) -> Result<()> {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let config = self.blob(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Entrypoint": entrypoint, "Cmd": arguments, "Env": [path] },
            // Layers are not compressed, so what is hashed is the same.
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|blob| &blob.digest).collect::<Vec<_>>() },
        }))?;
        let oci = |kind: &str| format!("application/vnd.oci.image.{kind}");
        let layers: Vec<Value> = layers.iter().map(|blob| blob.descriptor(&oci("layer.v1.tar"))).collect();
        let manifest = self.blob(&json!({
            "schemaVersion": 2,
            "mediaType": oci("manifest.v1+json"),
            "config": config.descriptor(&oci("config.v1+json")),
            "layers": layers,
        }))?;
        let mut entry = manifest.descriptor(&oci("manifest.v1+json"));
        entry["annotations"] = json!({ "io.containerd.image.name": name });
        self.manifests.push(entry);
        Ok(())
    }

    fn blob(&self, value: &Value) -> Result<Blob> {
        let file = self.dir.path().join("blob");
        write(&file, value.to_string())?;
        self.adopt(&file)
    }

    /// Moves a file to where its hash says.
    fn adopt(&self, file: &Path) -> Result<Blob> {
        let size = file.metadata()?.len();
        let hash = run(Command::new("sha256sum").arg(file))?;
        let hash = hash.split_whitespace().next().context("sha256sum printed nothing")?;
        std::fs::rename(file, self.dir.path().join("blobs/sha256").join(hash))?;
        Ok(Blob { digest: format!("sha256:{hash}"), size })
    }

    /// Writes the archive; it appears under its name when it is whole.
    fn pack(&self, to: &Path) -> Result<()> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        write(&self.dir.path().join("index.json"), index.to_string())?;
        let half = self.dir.path().join("half.tar");
        let parts = ["oci-layout", "index.json", "blobs"];
        run(Command::new("tar").arg("-cf").arg(&half).arg("-C").arg(self.dir.path()).args(parts))?;
        std::fs::rename(&half, to).with_context(|| format!("make {}", to.display()))
    }
}

impl Blob {
    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.size })
    }
}

/// Rust's name for the machine, in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
