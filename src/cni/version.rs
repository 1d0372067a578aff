//! Versions of the CNI specification.

use std::fmt;

use serde_json::json;

use super::{CniError, Code};

/// A version of the specification that the plugins speak, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0: several addresses of a family.
    V0_3_0,
    /// 0.3.1, which flannel's manifest asks for.
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0: addresses no longer name their family.
    V1_0_0,
    /// 1.1.0: GC and STATUS.
    V1_1_0,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest.
    pub const CURRENT: Self = Self::V1_1_0;

    /// As the specification writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads `cniVersion`. A configuration without one is of version 0.1.0, says the specification.
    ///
    /// # Errors
    /// Code 1 for a version that the plugins do not speak.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let text = if text.is_empty() { "0.1.0" } else { text };
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|version| version.as_str()).collect();
            CniError::new(
                Code::IncompatibleVersion,
                format!("cniVersion {text:?} is not supported"),
                format!("write one of {} into the network configuration", known.join(", ")),
            )
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer to VERSION.
pub fn versions() -> serde_json::Value {
    json!({
        "cniVersion": Version::CURRENT.as_str(),
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
}
