//! Our programs, built so that they run alone and that the same source gives the same bytes in any folder.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::about::About;
use crate::platform::Platform;
use crate::run::{output, run};

/// Of the tool that puts the list of crates into a program, where scanners look for it.
const AUDITABLE: &str = "0.7.7";

/// A workspace, and where its programs are built.
pub struct Workshop {
    source: PathBuf,
    target: PathBuf,
    cargo: PathBuf,
    auditable: PathBuf,
}

/// Programs of one machine.
pub struct Programs {
    /// `flanneld`.
    pub daemon: PathBuf,
    /// `flannel`.
    pub plugin: PathBuf,
}

impl Workshop {
    /// Builds from `source` into `target`; tools are kept in `tools`.
    ///
    /// # Errors
    /// When the source is no folder, or a tool cannot be installed.
    pub fn open(source: &Path, target: &Path, tools: &Path) -> Result<Self> {
        let source = source.canonicalize().with_context(|| format!("no folder {}", source.display()))?;
        fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
        let target = target.canonicalize()?;
        // cargo sets it for what it runs.
        let cargo = PathBuf::from(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        let auditable = tools.join("bin/cargo-auditable");
        if !auditable.exists() {
            run(Command::new(&cargo)
                .args(["install", "--quiet", "--locked", "--version", AUDITABLE, "cargo-auditable", "--root"])
                .arg(tools)
                // It is a tool of this machine, whatever the image is for.
                .env_remove("RUSTFLAGS"))?;
        }
        Ok(Self { source, target, cargo, auditable })
    }

    /// The cargo that builds for `platform`: `CARGO_amd64` and `CARGO_arm64` name another one, as a distribution has it.
    pub fn cargo(&self, platform: Platform) -> PathBuf {
        std::env::var_os(format!("CARGO_{}", platform.name()))
            .map_or_else(|| self.cargo.clone(), PathBuf::from)
    }

    /// Builds both programs.
    ///
    /// # Errors
    /// When something that a build for this machine needs is missing, with how to get it; or what the compiler said.
    pub fn build(&self, platform: Platform, about: &About) -> Result<Programs> {
        let cargo = self.cargo(platform);
        let rustc = cargo.with_file_name("rustc");
        let rustc = if rustc.exists() { rustc } else { "rustc".into() };
        let (triple, linker) = (platform.rust(), linker(platform));
        self.check(platform, &rustc, linker)?;

        let upper = triple.to_uppercase().replace('-', "_");
        let mut command = Command::new(&self.auditable);
        command
            .args(["auditable", "build", "--locked", "--profile", "dist", "--package", "loden", "--bins"])
            .args(["--target", triple, "--target-dir"])
            .arg(&self.target)
            .current_dir(&self.source)
            .env("CARGO", &cargo)
            .env("RUSTC", &rustc)
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags()?)
            .env(format!("CFLAGS_{}", triple.replace('-', "_")), self.c_flags()?)
            .env("SOURCE_DATE_EPOCH", about.epoch.to_string())
            .env("LODEN_COMMIT", &about.commit)
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_TARGET_DIR");
        if let Some(linker) = linker {
            command.env(format!("CARGO_TARGET_{upper}_LINKER"), linker);
            command.env(format!("CC_{}", triple.replace('-', "_")), linker);
        }
        run(&mut command)?;
        let built = self.target.join(triple).join("dist");
        Ok(Programs { daemon: built.join("flanneld"), plugin: built.join("flannel") })
    }

    fn check(&self, platform: Platform, rustc: &Path, linker: Option<&str>) -> Result<()> {
        let (name, triple) = (platform.name(), platform.rust());
        let library = output(
            Command::new(rustc)
                .args(["--print", "target-libdir", "--target", triple])
                .current_dir(&self.source),
        )?;
        ensure!(
            Path::new(library.trim()).is_dir(),
            "{} has no standard library for {name}: run `rustup target add {triple}`, or let CARGO_{name} name a cargo \
             beside a compiler that has it; ARCH= builds for one machine only",
            rustc.display()
        );
        if let Some(linker) = linker {
            output(Command::new(linker).arg("--version")).with_context(|| {
                format!(
                    "programs for {name} are linked by {linker}: install Debian's package gcc-{}",
                    platform.debian()
                )
            })?;
        }
        Ok(())
    }

    /// No path of this machine gets into a program, and no library is needed beside it.
    fn flags(&self) -> Result<OsString> {
        let mut flags = OsString::from("-Ctarget-feature=+crt-static");
        for (from, to) in self.folders()? {
            // The compiler's flags are separated by this character, which no path holds.
            flags.push("\u{1f}--remap-path-prefix=");
            flags.push(from);
            flags.push(format!("={to}"));
        }
        Ok(flags)
    }

    /// The same for what is written in C.
    fn c_flags(&self) -> Result<OsString> {
        let mut flags = OsString::new();
        for (from, to) in self.folders()? {
            flags.push(" -ffile-prefix-map=");
            flags.push(from);
            flags.push(format!("={to}"));
        }
        Ok(flags)
    }

    /// Folders of this machine, and what they are called in every build. Where several fit, the last one counts.
    fn folders(&self) -> Result<Vec<(PathBuf, &'static str)>> {
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        let home = home.context("neither CARGO_HOME nor HOME is set")?;
        let mut folders =
            vec![(self.source.clone(), "/loden"), (self.target.clone(), "/target"), (home.clone(), "/cargo")];
        // One folder for each registry, whose name says where the registry is.
        for entry in fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten() {
            folders.push((entry.path(), "/crates"));
        }
        Ok(folders)
    }
}

/// The program that links for another machine than this one.
fn linker(platform: Platform) -> Option<&'static str> {
    match platform {
        here if Platform::here() == Some(here) => None,
        Platform::Amd64 => Some("x86_64-linux-gnu-gcc"),
        Platform::Arm64 => Some("aarch64-linux-gnu-gcc"),
    }
}
