//! The machines that an image is for, and what each of the worlds that meet here calls them.

use clap::ValueEnum;
use oci_spec::image::Arch;

/// A machine that has an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Platform {
    /// 64-bit x86.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Platform {
    /// Every machine, in the order of the image's index.
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// The one that this program was built for, if images exist for it.
    pub fn here() -> Option<Self> {
        Self::ALL.into_iter().find(|platform| platform.rust().starts_with(std::env::consts::ARCH))
    }

    /// OCI's and Debian's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The same word as a value.
    pub fn architecture(self) -> Arch {
        match self {
            Self::Amd64 => Arch::Amd64,
            Self::Arm64 => Arch::ARM64,
        }
    }

    /// Rust's target triple. The GNU C library also resolves names in a static program, as `/etc/hosts` says.
    pub fn rust(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Debian's triple: the folder of its libraries, and the prefix of its cross compilers.
    pub fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }
}
