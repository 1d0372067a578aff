//! The verbs of the CNI specification, version by version, and input that cannot be served.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::cni::{Container, Host, OURS, SUBNET_ENV};
use integration::process::find_program;
use integration::suite::{Checks, Notes, Suite};
use serde_json::{Value, json};

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .check("VERSION answers without standard input, and a person gets a sentence", versions)
        .check("every missing variable is named at once", missing_variables)
        .check("CHECK, GC and STATUS need the versions that brought them", version_of_verbs)
        .check("ADD, CHECK and DEL of each version", each_version)
        .check("addresses can be used and the bridge forwards when ADD returns", usable)
        .check("DEL where the namespace is gone, and where only its name is left", namespace_gone)
        .check("CHECK finds whatever somebody removed", check_finds)
        .check("STATUS and ADD say what subnet.env lacks", subnet_env)
        .check("a delegate that is not there, a namespace that is none, a foreign device", bad_surroundings)
        .check("a folder that cannot be written is named, and a later DEL cleans up", read_only_state)
        .check("loopback sets lo up", loopback)
        .check("built-in plugins run no program", no_program)
        .checks()
}

fn versions(_: &mut (), _: &Notes) -> Result<()> {
    let host = Host::ours()?;
    for plugin in OURS {
        let answer = host.run(plugin, &[("CNI_COMMAND", "VERSION")], &json!("no configuration"))?.result()?;
        ensure!(
            answer["supportedVersions"] == json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]),
            "{answer}"
        );
        let about = host.run(plugin, &[], &Value::Null)?;
        ensure!(
            about.ok && about.text.is_empty() && about.said.contains(&format!("CNI plugin {plugin}")),
            "{about:?}"
        );
    }
    Ok(())
}

fn missing_variables(_: &mut (), _: &Notes) -> Result<()> {
    let host = Host::ours()?;
    for (verb, lacking) in [
        ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        ("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
        ("GC", "CNI_PATH"),
    ] {
        let (code, text) =
            host.run("flannel", &[("CNI_COMMAND", verb)], &host.flannel_conf(&Value::Null))?.refusal()?;
        ensure!(code == 4 && text.contains(lacking), "{verb}: {code} {text}");
    }
    let (code, text) = host.run("flannel", &[("CNI_COMMAND", "REMOVE")], &Value::Null)?.refusal()?;
    ensure!(code == 4 && text.contains("REMOVE"), "{code} {text}");
    let container = Container::new("c1")?;
    let (code, _) = host.ask_for("ADD", &container, "a/b", &host.flannel_conf(&Value::Null))?.refusal()?;
    ensure!(code == 4, "a device name with a slash: {code}");
    let (code, _) = host.ask("ADD", &container, &host.flannel_conf(&json!({ "name": "../x" })))?.refusal()?;
    ensure!(code == 7, "a network name that leaves its folder: {code}");
    Ok(())
}

fn version_of_verbs(_: &mut (), _: &Notes) -> Result<()> {
    let (host, container) = (Host::ours()?, Container::new("c1")?);
    for (verb, version) in
        [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0"), ("ADD", "0.2.0"), ("ADD", "7.0.0")]
    {
        let conf = host.flannel_conf(&json!({ "cniVersion": version }));
        let (code, text) = host.ask(verb, &container, &conf)?.refusal()?;
        ensure!(code == 1 && text.contains(version), "{verb} of {version}: {code} {text}");
    }
    Ok(())
}

fn each_version(_: &mut (), _: &Notes) -> Result<()> {
    let host = Host::ours()?;
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let container = Container::new(&format!("c-{version}"))?;
        let conf = host.flannel_conf(&json!({ "cniVersion": version }));
        let result = host.ask("ADD", &container, &conf)?.result()?;
        ensure!(result["cniVersion"] == version, "{result}");
        let named =
            result["ips"].as_array().context("no addresses")?.iter().all(|ip| ip["version"].is_string());
        ensure!(named == version.starts_with("0."), "{result}");
        if version != "0.3.0" && version != "0.3.1" {
            let conf = host.flannel_conf(&json!({ "cniVersion": version, "prevResult": result }));
            host.ask("CHECK", &container, &conf)?.result()?;
        }
        let (code, text) = host.ask("ADD", &container, &conf)?.refusal()?;
        ensure!(text.contains("already exists"), "a second ADD: {code} {text}");
        // The first attachment has outlived the second ADD: its addresses are reserved.
        ensure!(
            host.state("networks")?.values().any(|owner| owner.contains(&container.id)),
            "freed by a refused ADD"
        );
        for round in 1..=2 {
            host.ask("DEL", &container, &conf)?.result().with_context(|| format!("DEL number {round}"))?;
        }
        let left = host.state("networks")?;
        ensure!(left.keys().all(|name| name.contains("last_reserved_ip")), "{left:?}");
        ensure!(host.state("flannel")?.is_empty(), "{:?}", host.state("flannel")?);
    }
    Ok(())
}

fn namespace_gone(_: &mut (), _: &Notes) -> Result<()> {
    let host = Host::ours()?;
    let (conf, bin) = (host.flannel_conf(&Value::Null), host.file("bin").display().to_string());
    // What is left of a name after `umount` is an ordinary file.
    fs::write(host.file("unmounted"), "")?;
    let unmounted = host.file("unmounted").display().to_string();
    for netns in [None, Some("/nonexistent"), Some(unmounted.as_str())] {
        let container = Container::new("c1")?;
        host.ask("ADD", &container, &conf)?.result()?;
        drop(container);
        let mut env = vec![
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", bin.as_str()),
        ];
        env.extend(netns.map(|netns| ("CNI_NETNS", netns)));
        host.run("flannel", &env, &conf)?.result().with_context(|| format!("{netns:?}"))?;
        let left = host.state("networks")?;
        ensure!(left.keys().all(|name| name.contains("last_reserved_ip")), "{netns:?}: {left:?}");
        ensure!(host.state("flannel")?.is_empty(), "{netns:?}: {:?}", host.state("flannel")?);
    }
    Ok(())
}

fn usable(_: &mut (), _: &Notes) -> Result<()> {
    let host = Host::ours()?;
    let conf = host.flannel_conf(&Value::Null);
    for number in 0..20 {
        let container = Container::new(&format!("c{number}"))?;
        let result = host.ask("ADD", &container, &conf)?.result()?;
        let addresses = container.netns.ip_show("-6 address show dev eth0 scope global")?;
        ensure!(addresses.contains("fd00:10:244:1:") && !addresses.contains("tentative"), "{addresses}");
        let veth = result["interfaces"][1]["name"].as_str().context("no device on the host")?;
        let port = host.netns().ip_show(&format!("-d link show dev {veth}"))?;
        ensure!(port.contains("state forwarding"), "{port}");
    }
    Ok(())
}

/// What somebody does, and what CHECK has to say of it.
type Damage = (&'static str, fn(&Host, &Container, &Value) -> Result<()>);

fn check_finds(_: &mut (), _: &Notes) -> Result<()> {
    let damages: [Damage; 5] = [
        ("is not there", |_, container, _| container.netns.ip("link delete eth0")),
        ("does not have", |_, container, _| container.netns.ip("address flush dev eth0 scope global")),
        ("no route", |_, container, _| container.netns.ip("route delete default")),
        ("no address is reserved", |host, _, _| Ok(fs::remove_dir_all(host.file("networks"))?)),
        ("is no port", |host, _, result| {
            let veth = result["interfaces"][1]["name"].as_str().context("no device on the host")?;
            host.netns().ip(&format!("link set {veth} nomaster"))
        }),
    ];
    for (said, damage) in damages {
        let (host, container) = (Host::ours()?, Container::new("c1")?);
        let result = host.ask("ADD", &container, &host.flannel_conf(&Value::Null))?.result()?;
        let conf = host.flannel_conf(&json!({ "prevResult": result }));
        host.ask("CHECK", &container, &conf)?.result().context("CHECK right after ADD")?;
        damage(&host, &container, &result)?;
        let (code, text) = host.ask("CHECK", &container, &conf)?.refusal()?;
        ensure!(code >= 100 && text.contains(said), "{said}: {code} {text}");
    }
    Ok(())
}

fn subnet_env(_: &mut (), _: &Notes) -> Result<()> {
    let (host, container) = (Host::ours()?, Container::new("c1")?);
    let conf = host.flannel_conf(&Value::Null);
    host.ask("STATUS", &container, &conf)?.result()?;
    for key in ["FLANNEL_MTU", "FLANNEL_IPMASQ"] {
        let half: String = SUBNET_ENV
            .lines()
            .filter(|line| !line.starts_with(key))
            .map(|line| format!("{line}\n"))
            .collect();
        host.write_subnet_env(&half)?;
        let (code, text) = host.ask("ADD", &container, &conf)?.refusal()?;
        ensure!(code == 11 && text.contains(key), "{code} {text}");
    }
    host.write_subnet_env(&SUBNET_ENV.replace("10.244.1.1/24", "10.244.1"))?;
    let (code, text) = host.ask("ADD", &container, &conf)?.refusal()?;
    ensure!(code == 7 && text.contains("FLANNEL_SUBNET"), "{code} {text}");
    fs::remove_file(host.file("subnet.env"))?;
    let (code, text) = host.ask("ADD", &container, &conf)?.refusal()?;
    ensure!(code == 11 && text.contains("subnet.env"), "{code} {text}");
    let (code, text) = host.ask("STATUS", &container, &conf)?.refusal()?;
    ensure!(code == 50 && text.contains("subnet.env"), "{code} {text}");
    ensure!(host.devices()?.is_empty() && host.state("flannel")?.is_empty(), "a refused ADD left something");
    Ok(())
}

fn bad_surroundings(_: &mut (), _: &Notes) -> Result<()> {
    let (host, container) = (Host::ours()?, Container::new("c1")?);
    let unknown = host.flannel_conf(&json!({ "delegate": { "type": "ipvlan" } }));
    let (code, text) = host.ask("ADD", &container, &unknown)?.refusal()?;
    ensure!(code == 7 && text.contains("ipvlan") && text.contains("bin"), "{code} {text}");
    let leaves = host.flannel_conf(&json!({ "delegate": { "type": "../../bin/sh" } }));
    let (code, text) = host.ask("ADD", &container, &leaves)?.refusal()?;
    ensure!(code == 7 && text.contains("no name of a plugin"), "{code} {text}");

    let conf = host.bridge_conf("1.0.0", &json!({ "isDefaultGateway": true }));
    let env = |netns: &'static str| {
        [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/nonexistent"),
            ("CNI_NETNS", netns),
        ]
    };
    for (netns, expected) in [("/nonexistent", 3), ("/etc/passwd", 8)] {
        let (code, text) = host.run("bridge", &env(netns), &conf)?.refusal()?;
        ensure!(code == expected, "{netns}: {code} {text}");
    }
    let own = host.netns().path();
    let mut env: Vec<(&str, &str)> = env("").into();
    env.retain(|(name, _)| *name != "CNI_NETNS");
    env.push(("CNI_NETNS", &own));
    let (code, text) = host.run("bridge", &env, &conf)?.refusal()?;
    ensure!(code == 8 && text.contains("same"), "the plugin's own namespace: {code} {text}");
    ensure!(host.state("networks")?.keys().all(|name| name.contains("last_")), "an address is held");

    host.netns().ip("link add cni0 type veth peer name other")?;
    let (code, text) = host.ask("ADD", &container, &conf)?.refusal()?;
    ensure!(code == 7 && text.contains("not a bridge"), "{code} {text}");
    host.netns().ip("link delete cni0")?;
    host.ask("ADD", &container, &conf)?.result()?;
    host.ask("DEL", &container, &conf)?.result()?;
    // The bridge keeps the address of an earlier podCIDR.
    let other = host.bridge_conf("1.0.0", &json!({
        "isGateway": true,
        "ipam": { "type": "host-local", "dataDir": host.file("networks"), "ranges": [[{ "subnet": "10.9.9.0/24" }]] },
    }));
    let (_, text) = host.ask("ADD", &container, &other)?.refusal()?;
    ensure!(text.contains("10.244.1.1/24") && text.contains("ip link delete"), "{text}");
    let mut forced = other;
    forced["forceAddress"] = true.into();
    host.ask("ADD", &container, &forced)?.result()?;
    Ok(())
}

fn read_only_state(_: &mut (), _: &Notes) -> Result<()> {
    let (host, container) = (Host::ours()?, Container::new("c1")?);
    // A file where a folder should be stands for whatever cannot be written, also for root.
    fs::write(host.file("networks"), "")?;
    let conf = host.flannel_conf(&Value::Null);
    let (code, text) = host.ask("ADD", &container, &conf)?.refusal()?;
    ensure!(code == 5 && text.contains("networks"), "{code} {text}");
    let veths: Vec<String> = host.devices()?.into_iter().filter(|name| name.starts_with("veth")).collect();
    ensure!(veths.is_empty(), "a refused ADD left {veths:?}");
    // DEL never forgets what its delegate could not undo.
    host.ask("DEL", &container, &conf)?.refusal()?;
    ensure!(!host.state("flannel")?.is_empty(), "forgotten");
    fs::remove_file(host.file("networks"))?;
    host.ask("DEL", &container, &conf)?.result()?;
    ensure!(host.state("flannel")?.is_empty(), "{:?}", host.state("flannel")?);
    Ok(())
}

fn loopback(_: &mut (), _: &Notes) -> Result<()> {
    let (host, container) = (Host::ours()?, Container::new("c1")?);
    container.netns.ip("link set lo down")?;
    let conf = json!({ "cniVersion": "1.0.0", "name": "lo", "type": "loopback" });
    let (_, text) = host.ask("CHECK", &container, &conf)?.refusal()?;
    ensure!(text.contains("down"), "{text}");
    let result = host.ask("ADD", &container, &conf)?.result()?;
    ensure!(result["ips"][0]["address"] == "127.0.0.1/8", "{result}");
    host.ask("CHECK", &container, &conf)?.result()?;
    host.ask("DEL", &container, &conf)?.result()?;
    Ok(())
}

fn no_program(_: &mut (), notes: &Notes) -> Result<()> {
    let (host, container) = (Host::ours()?, Container::new("c1")?);
    let strace = find_program("strace").context("strace is missing: run `make setup`")?;
    let trace = host.file("trace");
    let (path, netns, program) = (host.file("bin"), container.path(), host.plugin("flannel"));
    let conf = host.flannel_conf(&Value::Null);
    let output = host
        .netns()
        .command(strace)
        .args(["-f", "-e", "trace=execve,clone,clone3,fork,vfork", "-o"])
        .arg(&trace)
        .arg(program)
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", path)
        .input(conf.to_string())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let calls = fs::read_to_string(&trace)?;
    let calls: Vec<&str> =
        calls.lines().filter(|line| line.contains("execve(") || line.contains("clone")).collect();
    ensure!(calls.len() == 1, "{calls:?}");
    notes.add("ADD of flannel, bridge and host-local: one process, no thread");
    Ok(())
}
