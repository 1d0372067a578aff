//! The same configuration with Loden's plugins and with the reference plugins: results, devices, addresses, routes and
//! files have to be the same, and either undoes what the other did.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cni::{Container, Host};
use integration::suite::{Checks, Notes, Suite};
use integration::wait;
use serde_json::{Value, json};

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .check("flannel's shipped configuration, both families", |(), _| {
            same(|host| host.flannel_conf(&Value::Null), &[])
        })
        .check("bridge: every field, every version", bridge_fields)
        .check("host-local alone: ranges, requests, resolvers", host_local)
        .check("what one plugin refuses the other refuses", refused)
        .check("reference plugins remove what ours made, and ours what they made", either_undoes)
        .check("how long an ADD takes", duration)
        .checks()
}

/// Everything that an ADD left, with what is random replaced by what it is.
fn added(
    host: &Host,
    container: &Container,
    conf: &Value,
    env: &[(&str, &str)],
) -> Result<BTreeMap<String, Value>> {
    let plugin = conf["type"].as_str().context("a configuration without a type")?;
    let bin = host.file("bin");
    let netns = container.path();
    let mut all = vec![
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", container.id.as_str()),
        ("CNI_NETNS", &netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", bin.to_str().context("a path that is no text")?),
    ];
    all.extend(env);
    let result = host.run(plugin, &all, conf)?.result()?;
    // Devices tell later that they have come up, and with `enabledad` the kernel goes on probing.
    wait::until_true("devices have come up and addresses are probed", || {
        let shown = container.netns.ip_show("-j address show")? + &host.netns().ip_show("-j address show")?;
        Ok(!["tentative", "NO-CARRIER", "\"DOWN\""].iter().any(|word| shown.contains(word)))
    })?;
    let mut seen = BTreeMap::from([("result".to_owned(), result)]);
    for (what, netns, args) in [
        ("container's addresses", &container.netns, "-j address show"),
        ("container's routes", &container.netns, "-j route show table all"),
        ("container's IPv6 routes", &container.netns, "-j -6 route show"),
        ("node's devices", host.netns(), "-j -d link show"),
        ("node's addresses", host.netns(), "-j address show"),
        ("node's routes", host.netns(), "-j route show"),
    ] {
        seen.insert(what.into(), serde_json::from_str(&netns.ip_show(args)?)?);
    }
    for folder in ["networks", "flannel"] {
        for (file, text) in host.state(folder)? {
            // Our own file of each attachment stands beside flannel's.
            if !file.contains('@') {
                seen.insert(format!("file {folder}/{file}"), text.into());
            }
        }
    }
    let forwarding = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];
    seen.insert("forwarding".into(), host.netns().command("sysctl").arg("-n").args(forwarding).run()?.into());
    seen.values_mut().for_each(|value| stable(value, &host.file("").display().to_string(), &netns));
    Ok(seen)
}

/// What the kernel numbers or draws, by `ip`'s names for it, and two that differ by moment and on purpose: a device's
/// state lags behind its carrier, and the reference plugin gives the node's end a queue of no packets.
const BY_CHANCE: [&str; 13] = [
    "designated_port",
    "topology_change_detected",
    "operstate",
    "txqlen",
    "ifindex",
    "link_index",
    "link_netnsid",
    "bridge_id",
    "root_id",
    "id",
    "no",
    "designated_bridge",
    "designated_root",
];

fn is_mac(text: &str) -> bool {
    text.len() == 17 && text.split(':').count() == 6 && text != "ff:ff:ff:ff:ff:ff"
}

/// Takes out what differs from run to run: addresses drawn by chance, indices, counters, paths.
fn stable(value: &mut Value, dir: &str, netns: &str) {
    match value {
        Value::Array(items) => {
            // The kernel gives each device a link-local address of its own accord, and in its own time.
            items.retain(|item| !item["local"].as_str().is_some_and(|local| local.starts_with("fe80")));
            items.iter_mut().for_each(|item| stable(item, dir, netns));
            // Lists of flags and of devices have no order that anybody relies on.
            items.sort_by_key(ToString::to_string);
        }
        Value::Object(fields) => {
            fields.retain(|key, _| !BY_CHANCE.contains(&key.as_str()) && !key.ends_with("_timer"));
            fields.values_mut().for_each(|value| stable(value, dir, netns));
        }
        Value::String(text) => {
            *text = text.replace(dir, "DIR/").replace(netns, "NETNS");
            if is_mac(text) {
                "MAC".clone_into(text);
            }
            if text.starts_with("veth") {
                "veth".clone_into(text);
            }
            if text.starts_with("fe80") || text.starts_with("ff") {
                "link-local".clone_into(text);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn same(conf: impl Fn(&Host) -> Value, env: &[(&str, &str)]) -> Result<()> {
    let (ours, theirs) = (Host::ours()?, Host::reference()?);
    // Containers that are dropped take their devices along, a little later.
    let mut alive = Vec::new();
    for id in ["c1", "c2"] {
        let (mine, other) = (Container::new(id)?, Container::new(id)?);
        let left = added(&ours, &mine, &conf(&ours), env).context("with our plugins")?;
        let right = added(&theirs, &other, &conf(&theirs), env).context("with the reference plugins")?;
        alive.extend([mine, other]);
        for (what, value) in &right {
            let ours = left.get(what).unwrap_or(&Value::Null);
            ensure!(ours == value, "{what}, ours is < and the reference is >:\n{}", difference(ours, value));
        }
        ensure!(left.len() == right.len(), "ours has {:?}", left.keys());
        // Requests of a static address cannot be met twice.
        if !env.is_empty() {
            break;
        }
    }
    Ok(())
}

/// The lines that one of them has more often.
fn difference(ours: &Value, reference: &Value) -> String {
    let (ours, reference) = (format!("{ours:#}"), format!("{reference:#}"));
    let more = |mark: &str, these: &str, those: &str| -> String {
        let mut left: Vec<&str> = those.lines().collect();
        let mut only = String::new();
        for line in these.lines() {
            match left.iter().position(|other| *other == line) {
                Some(at) => drop(left.swap_remove(at)),
                None => only += &format!("{mark} {line}\n"),
            }
        }
        only
    };
    more("<", &ours, &reference) + &more(">", &reference, &ours)
}

fn bridge_fields(_: &mut (), _: &Notes) -> Result<()> {
    let ranges = |host: &Host, ranges: Value| json!({ "type": "host-local", "dataDir": host.file("networks"), "ranges": ranges });
    let dual = json!([[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd00:10:244:1::/64" }]]);
    let several = json!([[
        { "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.9", "rangeEnd": "10.244.1.9" },
        { "subnet": "10.244.2.0/24", "gateway": "10.244.2.254" },
    ]]);
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        same(|host| host.bridge_conf(version, &json!({ "isDefaultGateway": true })), &[]).context(version)?;
    }
    for fields in [
        json!({}),
        json!({ "isGateway": true, "mtu": 1400, "bridge": "br7" }),
        json!({ "isDefaultGateway": true, "hairpinMode": true, "enabledad": true }),
        json!({ "isGateway": true, "promiscMode": true, "portIsolation": true }),
        json!({ "isDefaultGateway": true, "dns": { "nameservers": ["10.96.0.10"], "search": ["a.b"] } }),
        json!({ "isGateway": true, "runtimeConfig": { "mac": "02:00:00:00:00:07" } }),
        json!({ "ipam": {} }),
    ] {
        same(|host| host.bridge_conf("1.0.0", &fields), &[]).with_context(|| fields.to_string())?;
    }
    // A bridge has the gateway of one network only, so the second has none.
    same(|host| host.bridge_conf("1.0.0", &json!({ "ipam": ranges(host, several.clone()) })), &[])?;
    same(
        |host| {
            let ipam = ranges(host, dual.clone());
            host.bridge_conf("1.0.0", &json!({ "isDefaultGateway": true, "ipam": ipam }))
        },
        &[],
    )?;
    let routes = json!([
        { "dst": "10.96.0.0/12" },
        { "dst": "0.0.0.0/0", "gw": "10.244.1.77" },
        // The reference plugin reads a route's MTU and does not set it.
        { "dst": "192.168.0.0/16", "priority": 7 },
    ]);
    same(
        |host| {
            let mut ipam = ranges(host, json!([[{ "subnet": "10.244.1.0/24" }]]));
            ipam["routes"] = routes.clone();
            host.bridge_conf("1.1.0", &json!({ "isDefaultGateway": true, "ipam": ipam }))
        },
        &[],
    )?;
    same(
        |host| host.bridge_conf("1.0.0", &json!({ "isGateway": true })),
        &[("CNI_ARGS", "IgnoreUnknown=1;IP=10.244.1.50;MAC=02:00:00:00:00:09")],
    )
}

fn host_local(_: &mut (), _: &Notes) -> Result<()> {
    for (ipam, more, env) in [
        (json!({ "subnet": "10.1.2.0/24" }), json!({}), vec![]),
        (
            json!({ "subnet": "10.1.2.0/24", "rangeStart": "10.1.2.20", "gateway": "10.1.2.254" }),
            json!({}),
            vec![],
        ),
        (
            json!({ "ranges": [[{ "subnet": "10.1.2.0/30" }, { "subnet": "10.1.3.0/24" }]] }),
            json!({}),
            vec![],
        ),
        (json!({ "ranges": [[{ "subnet": "10.1.2.0/24" }]], "resolvConf": "/etc/hosts" }), json!({}), vec![]),
        (
            json!({ "ranges": [[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "fd00::/64" }]] }),
            json!({ "args": { "cni": { "ips": ["10.1.2.9"] } }, "runtimeConfig": { "ips": ["fd00::99/64"] } }),
            vec![("CNI_ARGS", "IgnoreUnknown=1;K=V")],
        ),
        (
            json!({ "ranges": [[{ "subnet": "10.1.2.0/24" }]] }),
            json!({ "runtimeConfig": { "ipRanges": [[{ "subnet": "10.5.5.0/24" }]] } }),
            vec![],
        ),
    ] {
        let conf = |host: &Host| {
            let mut conf =
                json!({ "cniVersion": "1.0.0", "name": "net", "type": "host-local", "ipam": ipam.clone() });
            conf["ipam"]["dataDir"] = host.file("networks").display().to_string().into();
            conf["ipam"]["type"] = "host-local".into();
            if let (Some(conf), Some(more)) = (conf.as_object_mut(), more.as_object()) {
                conf.extend(more.clone());
            }
            conf
        };
        same(conf, &env).with_context(|| ipam.to_string())?;
    }
    Ok(())
}

fn refused(_: &mut (), _: &Notes) -> Result<()> {
    let (ours, theirs) = (Host::ours()?, Host::reference()?);
    let ipam = |ranges: Value| json!({ "ipam": { "type": "host-local", "ranges": ranges } });
    for fields in [
        json!({ "hairpinMode": true, "promiscMode": true }),
        ipam(json!([])),
        ipam(json!([[{ "subnet": "10.1.2.0/31" }]])),
        ipam(json!([[{ "subnet": "10.1.2.7/24" }]])),
        ipam(json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "10.1.2.0/25" }]])),
        json!({ "ipam": { "type": "nowhere" } }),
        json!({ "ipam": { "type": "host-local" } }),
        json!({ "mtu": "many" }),
    ] {
        for host in [&ours, &theirs] {
            let container = Container::new("c1")?;
            let answer = host.ask("ADD", &container, &host.bridge_conf("1.0.0", &fields))?;
            ensure!(!answer.ok, "{fields} is taken: {}", answer.text);
            host.ask("DEL", &container, &host.bridge_conf("1.0.0", &json!({})))?.result()?;
        }
    }
    Ok(())
}

fn either_undoes(_: &mut (), _: &Notes) -> Result<()> {
    let (ours, theirs) = (Host::ours()?, Host::reference()?);
    // The second has the first one's folders, as after a change of the plugins on a node with running pods.
    for (maker, remover) in [(&ours, &theirs), (&theirs, &ours)] {
        let container = Container::new("c1")?;
        let conf = maker.bridge_conf("1.0.0", &json!({ "isDefaultGateway": true }));
        let result = maker.ask("ADD", &container, &conf)?.result()?;
        let with_result = |conf: &Value| {
            let mut conf = conf.clone();
            conf["prevResult"] = result.clone();
            conf
        };
        let bin = remover.file("bin");
        let ask = |verb: &str, conf: &Value| {
            let netns = container.path();
            let env = [
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", "c1"),
                ("CNI_NETNS", &netns),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", bin.to_str().unwrap_or_default()),
            ];
            // In the maker's namespace, with the remover's program.
            let mut command = maker.netns().command(remover.plugin("bridge")).input(conf.to_string());
            for (key, value) in env {
                command = command.env(key, value);
            }
            command.run()
        };
        ask("CHECK", &with_result(&conf))?;
        ask("DEL", &conf)?;
        let left = maker.state("networks")?;
        ensure!(left.keys().all(|name| name.contains("last_reserved_ip")), "{left:?}");
        ensure!(container.netns.ip_show("-br link show")?.lines().count() == 1, "eth0 is still there");
    }
    Ok(())
}

/// Only recorded: a test asserts no time.
fn duration(_: &mut (), notes: &Notes) -> Result<()> {
    const ROUNDS: usize = 15;
    let (ours, theirs) = (Host::ours()?, Host::reference()?);
    let mut took = BTreeMap::<&str, Vec<Duration>>::new();
    for round in 0..ROUNDS {
        for (name, host) in [("ours", &ours), ("reference", &theirs)] {
            let container = Container::new(&format!("c{round}"))?;
            let conf = host.bridge_conf("1.0.0", &json!({ "isDefaultGateway": true }));
            let begun = Instant::now();
            host.ask("ADD", &container, &conf)?.result()?;
            took.entry(name).or_default().push(begun.elapsed());
            host.ask("DEL", &container, &conf)?.result()?;
        }
    }
    for (name, times) in &mut took {
        times.sort();
        let (median, worst) = (times.get(ROUNDS / 2), times.last());
        notes.add(format!(
            "ADD of bridge and host-local, {name}, debug build of ours: median {median:?}, worst {worst:?}"
        ));
    }
    Ok(())
}
