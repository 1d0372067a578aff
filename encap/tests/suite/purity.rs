//! What `no_std` cannot see: that no dependency brings I/O along.

use std::process::Command;

#[test]
#[expect(clippy::disallowed_methods, reason = "asks cargo, which knows; nothing of this ships")]
fn no_dependency_does_io() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", "encap", "--edges", "normal", "--prefix", "none", "--offline"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains(&"encap") && crates.contains(&"etherparse"), "not a dependency tree: {tree}");
    for banned in
        ["tokio", "mio", "socket2", "libc", "rustix", "nix", "kube", "hyper", "rtnetlink", "tun-tap"]
    {
        assert!(!crates.contains(&banned), "encap depends on {banned}:\n{tree}");
    }
}
