//! `NO_PROXY`: hosts that are asked directly.

use std::net::IpAddr;

use encap::Prefix;

/// Whether the list excepts a host, by the rules of Go's programs: names with what is below them, addresses, prefixes, `*`
/// for all; each may have a port, which is not compared.
pub(super) fn is_excepted(host: &str, list: &str) -> bool {
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    let ip = host.parse::<IpAddr>().ok();
    // Go never asks a proxy for this machine.
    if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    list.split([',', ' ']).map(|entry| entry.trim().to_ascii_lowercase()).any(|entry| match ip {
        _ if entry == "*" => true,
        Some(ip) => {
            let bare = entry.trim_matches(['[', ']']);
            bare.parse() == Ok(ip)
                || bare.parse().is_ok_and(|prefix: Prefix| prefix.contains(ip))
                || bare
                    .rsplit_once(':')
                    .is_some_and(|(bare, _)| bare.trim_matches(['[', ']']).parse() == Ok(ip))
        }
        None => {
            let name = entry.split(':').next().unwrap_or_default();
            let name = name.trim_start_matches('*').trim_start_matches('.');
            !name.is_empty() && (host == name || host.ends_with(&format!(".{name}")))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_addresses_and_prefixes_are_excepted() {
        for (host, list, want) in [
            ("10.0.0.1", "", false),
            ("127.0.0.1", "", true),
            ("localhost", "", true),
            ("10.0.0.1", "10.0.0.0/8", true),
            ("11.0.0.1", "10.0.0.0/8, 11.0.0.2", false),
            ("10.0.0.1", "example.org,10.0.0.1:6443", true),
            ("[fd00::1]", "fd00::/8", true),
            ("fd00::1", "fd00::1", true),
            ("api.example.org", ".example.org", true),
            ("api.example.org", "*.example.org", true),
            ("example.org", "example.org:6443", true),
            ("notexample.org", "example.org", false),
            ("API.example.org", "Example.org", true),
            ("anything", "a,*", true),
        ] {
            assert_eq!(is_excepted(host, list), want, "{host} in {list:?}");
        }
    }
}
