//! `image build` makes the image, `image repro` makes it twice and compares. `make image` and `make image-repro` call them.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a tool for people: it runs programs, writes files and says what it made"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use loden_image::about::About;
use loden_image::contents::{self, Ours};
use loden_image::digest::sha256;
use loden_image::layout::{self, Image, Part};
use loden_image::platform::Platform;
use loden_image::programs::Workshop;
use loden_image::{debian, run, sbom, userland};

/// What a node may have to download.
const LIMIT: u64 = 12_000_000;

/// Makes Loden's container image without a container engine
#[derive(Parser)]
enum Cli {
    /// Make the image of a workspace as it is
    Build(Wanted),
    /// Make the image of the newest commit twice, in two folders from nothing, and compare the two
    Repro(Wanted),
}

#[derive(Args)]
struct Wanted {
    /// Name and tag of the image
    #[arg(long, default_value = concat!("loden:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// Only for these machines
    #[arg(long, value_enum, value_delimiter = ',')]
    arch: Vec<Platform>,
    /// The workspace
    #[arg(long, default_value = ".")]
    source: PathBuf,
    /// Where the archive, the bill of materials and everything on the way to them goes
    #[arg(long, default_value = "target/image")]
    out: PathBuf,
}

fn main() -> Result<()> {
    match Cli::parse() {
        Cli::Build(mut wanted) => {
            wanted.settle();
            build(&wanted, &wanted.source, &wanted.out).map(drop)
        }
        Cli::Repro(mut wanted) => {
            wanted.settle();
            repro(&wanted)
        }
    }
}

impl Wanted {
    fn settle(&mut self) {
        if self.arch.is_empty() {
            self.arch = Platform::ALL.to_vec();
        }
        self.arch.sort();
        self.arch.dedup();
    }
}

/// Builds from `source` into `out`; the hash of the archive.
fn build(wanted: &Wanted, source: &Path, out: &Path) -> Result<String> {
    let about = About::of_source(source, &wanted.name)?;
    let workshop = Workshop::open(source, &out.join("build"), &wanted.out.join("tools"))?;
    let distribution = debian::distribution()?;
    let mut parts = Vec::new();
    for &platform in &wanted.arch {
        println!("image: programs for {}", platform.name());
        let programs = workshop.build(platform, &about)?;
        println!("image: Debian's packages for {}", platform.name());
        let scratch = tempfile::tempdir_in(out)?;
        let (debian, used) = userland::collect(&debian::fetch(platform, scratch.path())?, platform)?;
        let crates = sbom::crates(&workshop.cargo(platform), source, platform)?;
        let sbom = sbom::document(&about, platform, &crates, &used, &distribution)?;
        write(&out.join(format!("{}-{}.spdx.json", about.title(), platform.name())), &sbom)?;
        let ours = Ours { daemon: read(&programs.daemon)?, plugin: read(&programs.plugin)?, sbom };
        let layers = vec![("iptables of Debian", debian), ("Loden", contents::tree(ours))];
        parts.push(Part { platform, layers });
    }
    let Image { archive, sizes, digest } = layout::assemble(&about, &parts)?;
    for (platform, size) in sizes {
        println!("image: {} bytes to download for {}", size, platform.name());
        ensure!(size <= LIMIT, "an image of more than {LIMIT} bytes takes nodes too long to pull");
    }
    let path = out.join(format!("{}.tar", about.title()));
    write(&path, &archive)?;
    let hash = sha256(&archive);
    println!("image: {} is {} (digest {digest})\nimage: sha256 {hash}", path.display(), about.full_name());
    Ok(hash)
}

/// Two builds of the same commit that have nothing in common but the tools.
fn repro(wanted: &Wanted) -> Result<()> {
    let mut hashes = Vec::new();
    for folder in ["one", "a-folder-with-a-longer-name"] {
        let dir = wanted.out.join("repro").join(folder);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let source = dir.join("source");
        run::run(Command::new("git").args(["clone", "--quiet"]).arg(&wanted.source).arg(&source))?;
        hashes.push(build(wanted, &source, &dir)?);
    }
    match hashes.as_slice() {
        [one, other] if one == other => println!("image: both builds are {one}"),
        _ => bail!(
            "two builds of one commit differ; the archives are in {}",
            wanted.out.join("repro").display()
        ),
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The file appears under its name when it is whole.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let half = path.with_extension("half");
    fs::write(&half, bytes).with_context(|| format!("write {}", half.display()))?;
    fs::rename(&half, path).with_context(|| format!("make {}", path.display()))
}
