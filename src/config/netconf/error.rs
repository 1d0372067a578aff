//! What can be wrong with a net-conf.json, and how to put it right.

use std::fmt;

use encap::PrefixError;

use crate::config::excerpt;

/// Something that was ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// A key nobody reads.
    UnknownKey {
        /// Where, such as `Backend.VNI`.
        path: String,
        /// The key that was perhaps meant.
        nearest: Option<&'static str>,
    },
    /// `Backend.Mode` of vxlan, which has another name now.
    Mode {
        /// What is written.
        value: &'static str,
    },
    /// A key that is given again further down.
    Duplicate {
        /// Where.
        path: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKey { path, nearest: Some(nearest) } => {
                write!(f, "key {} is unknown and ignored; did you mean {nearest}?", excerpt(path))
            }
            Self::UnknownKey { path, nearest: None } => {
                write!(f, "key {} is unknown and ignored; remove it", excerpt(path))
            }
            Self::Mode { value } => write!(
                f,
                "key \"Backend.Mode\" is read for vxlan in this version only, because in flannel it is a key of wireguard: \
                 write \"DataPath\": \"{value}\" in its place"
            ),
            Self::Duplicate { path } => {
                write!(
                    f,
                    "key {} is given more than once, and the last one counts; remove the others",
                    excerpt(path)
                )
            }
        }
    }
}

/// Why a net-conf.json cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetConfError {
    /// Far beyond any real configuration.
    #[error(
        "{bytes} bytes are too many for a network configuration (at most {max}): check that this is the right file"
    )]
    TooLarge {
        /// Size of the text.
        bytes: usize,
        /// Largest size that is read.
        max: usize,
    },
    /// Not JSON.
    #[error("not valid JSON at line {line}, column {column}: {reason}; correct it there or just before")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in bytes.
        column: usize,
        /// What the parser met.
        reason: String,
    },
    /// JSON of another type than the field has.
    #[error("{} is {value}, but must be {expected}", path_or_file(.path))]
    WrongType {
        /// The field, such as `Backend.Port`; empty for the file as a whole.
        path: String,
        /// What is there.
        value: String,
        /// What should be.
        expected: String,
    },
    /// A whole number outside the field's range.
    #[error("{path} is {value}, but must be a whole number from {min} to {max}")]
    OutOfRange {
        /// The field.
        path: String,
        /// What is there.
        value: String,
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// A pod network that is not a prefix.
    #[error("{path}: {reason}")]
    Prefix {
        /// The field.
        path: String,
        /// What is wrong with it; names the value and the remedy. Part of the text above, so no source beside it.
        reason: PrefixError,
    },
    /// A pod network of the other address family.
    #[error("{path} is {value}, but must be an {} prefix, such as {}: for the other family there is the key {}",
        if *ipv4 { "IPv4" } else { "IPv6" }, example(*ipv4), if *ipv4 { "IPv6Network" } else { "Network" })]
    WrongFamily {
        /// The field.
        path: String,
        /// The prefix.
        value: encap::Prefix,
        /// The family the field has.
        ipv4: bool,
    },
    /// A pod network that would capture traffic that is not for pods.
    #[error("{path} is {value}, which {reason}; write the network the cluster's podCIDRs are taken from, such as {}", example(value.is_ipv4()))]
    Unusable {
        /// The field.
        path: String,
        /// The prefix.
        value: encap::Prefix,
        /// Why it cannot be.
        reason: &'static str,
    },
    /// No pod network for an enabled family.
    #[error("{key} is missing: add \"{key}\": \"{}\" with the network the cluster's podCIDRs are taken from, or set \"{}\": false",
        example(*key == "Network"), if *key == "Network" { "EnableIPv4" } else { "EnableIPv6" })]
    NetworkMissing {
        /// `Network` or `IPv6Network`.
        key: &'static str,
    },
    /// Neither family is enabled.
    #[error(
        "EnableIPv4 is false and EnableIPv6 is not true, so there is no network: set one of them to true"
    )]
    NoFamily,
}

fn path_or_file(path: &str) -> &str {
    if path.is_empty() { "the file's content" } else { path }
}

fn example(ipv4: bool) -> &'static str {
    if ipv4 { "10.244.0.0/16" } else { "fd00:10:244::/56" }
}
