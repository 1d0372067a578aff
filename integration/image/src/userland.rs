//! Programs of Debian's that `flanneld` runs, with exactly the libraries that they load.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::elf;
use crate::platform::Platform;
use crate::tree::Tree;

/// Debian packages that hold these programs; what they depend on comes along.
pub const PACKAGES: [&str; 1] = ["iptables"];

/// Programs, and the names beside their own that they are started by. iptables is there twice, for nftables and for the
/// kernel's older interface, because a node's rules have to stand where kube-proxy's are. The plain names are of the newer.
const PROGRAMS: [(&str, &[&str]); 2] = [
    (
        "xtables-legacy-multi",
        &[
            "iptables-legacy",
            "iptables-legacy-save",
            "iptables-legacy-restore",
            "ip6tables-legacy",
            "ip6tables-legacy-save",
            "ip6tables-legacy-restore",
        ],
    ),
    (
        "xtables-nft-multi",
        &[
            "iptables",
            "iptables-save",
            "iptables-restore",
            "ip6tables",
            "ip6tables-save",
            "ip6tables-restore",
            "iptables-nft",
            "iptables-nft-save",
            "iptables-nft-restore",
            "ip6tables-nft",
            "ip6tables-nft-save",
            "ip6tables-nft-restore",
        ],
    ),
];

/// Where the programs of a rule's matches and targets lie, beside the libraries. iptables loads them by name, so no file
/// names them; and it has to print rules of other programs, so all of them go in.
const EXTENSIONS: &str = "xtables";

/// A package, unpacked into a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the package file, in hex; empty where there was no such file.
    pub sha256: String,
    /// Its files. `/` is a machine on which packages are installed.
    pub dir: PathBuf,
}

/// What goes into the image from `packages`, and which of them it came from.
///
/// # Errors
/// When a program, a library or a licence is in none of them.
pub fn collect(packages: &[Package], platform: Platform) -> Result<(Tree, Vec<Package>)> {
    let mut collected = Collected { packages, platform, tree: Tree::default(), used: BTreeSet::new() };
    for (program, names) in PROGRAMS {
        let path = format!("/usr/sbin/{program}");
        let (package, file) = collected.find(&["usr/sbin"], program)?;
        collected.add(&path, package, &file)?;
        for name in names {
            collected.tree.link(&format!("/usr/sbin/{name}"), program);
        }
    }
    collected.extensions()?;
    collected.licences()?;
    let used = collected.used.into_iter().cloned().collect();
    Ok((collected.tree, used))
}

struct Collected<'a> {
    packages: &'a [Package],
    platform: Platform,
    tree: Tree,
    used: BTreeSet<&'a Package>,
}

impl<'a> Collected<'a> {
    fn folders(&self) -> [String; 4] {
        let triple = self.platform.debian();
        [format!("usr/lib/{triple}"), format!("lib/{triple}"), "usr/lib".to_owned(), "lib".to_owned()]
    }

    fn find_library(&self, name: &str) -> Result<(&'a Package, PathBuf)> {
        let dirs = self.folders();
        self.find(&dirs.each_ref().map(String::as_str), name)
    }

    fn find(&self, dirs: &[&str], name: &str) -> Result<(&'a Package, PathBuf)> {
        let places = dirs.iter().flat_map(|dir| {
            self.packages.iter().map(move |package| (package, package.dir.join(dir).join(name)))
        });
        places.into_iter().find(|(_, path)| path.exists()).with_context(|| {
            let names: Vec<&str> = self.packages.iter().map(|package| package.name.as_str()).collect();
            format!("none of the packages {} has {name} in {}", names.join(", "), dirs.join(" or "))
        })
    }

    /// A program or library with all that it needs.
    fn add(&mut self, path: &str, package: &'a Package, file: &Path) -> Result<()> {
        let bytes = read(file)?;
        let needs = elf::needs(&bytes).with_context(|| file.display().to_string())?;
        let needs = needs.with_context(|| format!("{} is no program", file.display()))?;
        self.used.insert(package);
        self.tree.program(path, bytes);
        for library in needs.libraries {
            self.add_library(&format!("/usr/lib/{}/{library}", self.platform.debian()), &library)?;
        }
        if let Some(loader) = needs.loader {
            let name = loader.rsplit('/').next().unwrap_or_default().to_owned();
            self.add_library(&loader, &name)?;
        }
        Ok(())
    }

    fn add_library(&mut self, path: &str, name: &str) -> Result<()> {
        if self.tree.has(path) {
            return Ok(());
        }
        let (package, file) = self.find_library(name)?;
        self.add(path, package, &file)
    }

    fn extensions(&mut self) -> Result<()> {
        let (package, dir) = self.find_library(EXTENSIONS)?;
        let inside = format!("/usr/lib/{}/{EXTENSIONS}", self.platform.debian());
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        ensure!(names.len() > 50, "{} holds only {} extensions", dir.display(), names.len());
        for name in names.iter().filter(|name| name.ends_with(".so")) {
            let (path, file) = (format!("{inside}/{name}"), dir.join(name));
            match fs::read_link(&file) {
                Ok(target) => self.tree.link(&path, &target.to_string_lossy()),
                Err(_) => self.add(&path, package, &file)?,
            }
        }
        Ok(())
    }

    /// Licences ask that their text goes with the program.
    fn licences(&mut self) -> Result<()> {
        for package in self.used.iter().filter(|package| package.dir != Path::new("/")) {
            let path = format!("usr/share/doc/{}/copyright", package.name);
            let text = read(&package.dir.join(&path))?;
            self.tree.file(&format!("/{path}"), text);
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}
