//! The image as one file: an OCI image layout in a tar, which `ctr images import`, `podman load`, `docker load` and
//! `skopeo copy oci-archive:` take.

use std::collections::HashMap;

use anyhow::{Context, Result};
use oci_spec::image::{
    ConfigBuilder, Descriptor, HistoryBuilder, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, Platform as OciPlatform, PlatformBuilder,
    RootFsBuilder, SCHEMA_VERSION, Sha256Digest,
};
use serde::Serialize;
use serde_json::json;

use crate::about::About;
use crate::contents::{DAEMON, PATH};
use crate::digest::sha256;
use crate::platform::Platform;
use crate::tree::{Layer, Tree};

/// What the image is, in a line.
const DESCRIPTION: &str =
    "The overlay daemon that lets pods on different Kubernetes nodes talk: a drop-in replacement for flannel";
/// Ours, and of Debian's packages, whose texts are in `/usr/share/doc`.
const LICENCES: &str = "Apache-2.0 AND GPL-2.0-or-later AND LGPL-2.1-or-later";

/// One machine's part of an image.
pub struct Part {
    /// The machine.
    pub platform: Platform,
    /// What lies below, first. Each layer goes with what it is.
    pub layers: Vec<(&'static str, Tree)>,
}

/// A finished image.
pub struct Image {
    /// The archive.
    pub archive: Vec<u8>,
    /// Bytes that a node of each machine downloads.
    pub sizes: Vec<(Platform, u64)>,
    /// By which a registry knows the whole image.
    pub digest: String,
}

/// Puts an image together.
///
/// # Errors
/// When a file of it cannot be packed.
pub fn assemble(about: &About, parts: &[Part]) -> Result<Image> {
    let mut archive = Archive { about, tree: Tree::default(), docker: Vec::new() };
    let (mut manifests, mut sizes) = (Vec::new(), Vec::new());
    for part in parts {
        let (manifest, size) = archive.part(part).with_context(|| part.platform.name())?;
        manifests.push(manifest);
        sizes.push((part.platform, size));
    }
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .annotations(archive.labels()?)
        .build()?;
    let mut index = archive.json(MediaType::ImageIndex, &index)?;
    let digest = index.digest().to_string();
    // By the first podman and skopeo know the image's tag, by the second containerd its whole name.
    index.set_annotations(Some(HashMap::from([
        ("org.opencontainers.image.ref.name".to_owned(), about.tag().to_owned()),
        ("io.containerd.image.name".to_owned(), about.full_name()),
    ])));
    let outermost = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(vec![index])
        .build()?;
    archive.tree.file("/index.json", text(&outermost)?);
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0".to_owned()).build()?;
    archive.tree.file("/oci-layout", text(&layout)?);
    // A Docker without containerd's image store reads only this, and cannot choose among machines.
    if let [docker] = archive.docker.as_slice() {
        archive.tree.file("/manifest.json", text(&json!([docker]))?);
    }
    Ok(Image { archive: archive.tree.tar(about.epoch)?, sizes, digest })
}

struct Archive<'a> {
    about: &'a About,
    tree: Tree,
    docker: Vec<serde_json::Value>,
}

impl Archive<'_> {
    fn part(&mut self, part: &Part) -> Result<(Descriptor, u64)> {
        let (mut layers, mut ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
        for (what, tree) in &part.layers {
            let Layer { packed, tar } = tree.pack(self.about.epoch)?;
            ids.push(format!("sha256:{}", sha256(&tar)));
            layers.push(self.blob(MediaType::ImageLayerGzip, packed)?);
            history.push(
                HistoryBuilder::default()
                    .created(self.about.created()?)
                    .created_by((*what).to_owned())
                    .build()?,
            );
        }
        let config = ImageConfigurationBuilder::default()
            .architecture(part.platform.architecture())
            .os(Os::Linux)
            .created(self.about.created()?)
            .config(
                ConfigBuilder::default()
                    .entrypoint(vec![DAEMON.to_owned()])
                    .env(vec![PATH.to_owned()])
                    .labels(self.labels()?)
                    .build()?,
            )
            .rootfs(RootFsBuilder::default().typ("layers".to_owned()).diff_ids(ids).build()?)
            .history(history)
            .build()?;
        let config = self.json(MediaType::ImageConfig, &config)?;
        let path = |descriptor: &Descriptor| format!("blobs/sha256/{}", descriptor.digest().digest());
        self.docker.push(json!({
            "Config": path(&config),
            "RepoTags": [format!("{}:{}", self.about.repository(), self.about.tag())],
            "Layers": layers.iter().map(path).collect::<Vec<_>>(),
        }));
        let size = config.size() + layers.iter().map(Descriptor::size).sum::<u64>();
        let manifest = ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(layers)
            .annotations(self.labels()?)
            .build()?;
        let mut manifest = self.json(MediaType::ImageManifest, &manifest)?;
        manifest.set_platform(Some(platform(part.platform)?));
        Ok((manifest, size))
    }

    fn labels(&self) -> Result<HashMap<String, String>> {
        let labels = [
            ("title", self.about.title().to_owned()),
            ("description", DESCRIPTION.to_owned()),
            ("version", self.about.version.clone()),
            ("revision", self.about.commit.clone()),
            ("created", self.about.created()?),
            ("licenses", LICENCES.to_owned()),
        ];
        Ok(labels
            .into_iter()
            .map(|(key, value)| (format!("org.opencontainers.image.{key}"), value))
            .collect())
    }

    fn json(&mut self, kind: MediaType, value: &impl Serialize) -> Result<Descriptor> {
        self.blob(kind, text(value)?)
    }

    fn blob(&mut self, kind: MediaType, bytes: Vec<u8>) -> Result<Descriptor> {
        let hash = sha256(&bytes);
        let size = bytes.len() as u64;
        self.tree.file(&format!("/blobs/sha256/{hash}"), bytes);
        Ok(Descriptor::new(kind, size, hash.parse::<Sha256Digest>()?))
    }
}

fn platform(platform: Platform) -> Result<OciPlatform> {
    Ok(PlatformBuilder::default().architecture(platform.architecture()).os(Os::Linux).build()?)
}

/// JSON whose keys are sorted: the types keep labels in an order that differs from run to run.
fn text(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    Ok(serde_json::to_vec(&value)?)
}
