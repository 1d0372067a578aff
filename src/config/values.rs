//! Parsers of single flag values. Each error says what to write instead; clap adds flag and value.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{AnnotationPrefix, log_filter};

/// Go's `strconv.ParseBool`: exactly these spellings.
pub(super) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "write a port from 1 to 65535, or 0 for off".to_owned())
}

/// flannel's own bounds: a lease lives for a day.
pub(super) fn renew_margin(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|minutes| (1..1440).contains(minutes))
        .ok_or_else(|| "write minutes from 1 to 1439".to_owned())
}

pub(super) fn seconds(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "write a whole number of seconds".to_owned())
}

pub(super) fn verbosity(text: &str) -> Result<i32, String> {
    text.parse().map_err(|_| "write a whole number, such as 4".to_owned())
}

pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "write an IP address, such as 192.168.77.1".to_owned())
}

pub(super) fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| "write an IPv4 address, such as 192.168.77.1".to_owned())
}

pub(super) fn ipv6(text: &str) -> Result<Ipv6Addr, String> {
    text.parse().map_err(|_| "write an IPv6 address, such as 2001:db8::1".to_owned())
}

pub(super) fn regex(text: &str) -> Result<regex::Regex, String> {
    regex::RegexBuilder::new(text).size_limit(1 << 20).build().map_err(|e| match e {
        regex::Error::CompiledTooBig(_) => "the expression is too large: write a simpler one".to_owned(),
        // Several lines that draw where it is wrong, and at last what; messages here are one line.
        e => {
            let e = e.to_string();
            let what = e.lines().next_back().unwrap_or_default();
            format!("{}: write a regular expression, such as ^eth", what.trim_start_matches("error: "))
        }
    })
}

pub(super) fn annotation_prefix(text: &str) -> Result<AnnotationPrefix, String> {
    text.parse().map_err(|e: super::AnnotationPrefixError| e.to_string())
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    log_filter::check(text).map(|()| text.to_owned())
}
