//! Ports of the host: the same rules as the reference plugin's, and packets that follow them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use integration::cni::{Container, Host};
use integration::suite::{Checks, Notes, Suite};
use serde_json::{Value, json};

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .check(
            "rules, chains and tables are those of the reference plugin, and either undoes the other's",
            same,
        )
        .check("CHECK finds rules that are gone", check_finds)
        .check("a connection to the host's port reaches the container, from the host itself too", reaches)
        .check("what cannot be done is refused by name", refused)
        .checks()
}

/// A bridge with both families, then `portmap` with these fields; the result of the first.
fn attached(host: &Host, container: &Container) -> Result<Value> {
    let conf = host.bridge_conf(
        "1.0.0",
        &json!({
            "isDefaultGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": host.file("networks"),
                "ranges": [[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd00:10:244:1::/64" }]],
            },
        }),
    );
    host.ask("ADD", container, &conf)?.result()
}

fn conf(previous: &Value, fields: &Value) -> Value {
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "portmap", "backend": "nftables", "prevResult": previous,
    });
    if let (Some(conf), Some(fields)) = (conf.as_object_mut(), fields.as_object()) {
        conf.extend(fields.clone());
    }
    conf
}

fn ports() -> Value {
    json!({ "runtimeConfig": { "portMappings": [
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "" },
        { "hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.168.7.7" },
        { "hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0" },
        { "hostPort": 8083, "containerPort": 80, "protocol": "tcp", "hostIP": "fd00::7" },
        { "hostPort": 8084, "containerPort": 80, "protocol": "sctp" },
    ] } })
}

/// What nft says of the table, both families.
fn listed(host: &Host) -> Result<String> {
    let list =
        |family: &str| host.netns().command("nft").args(["list", "table", family, "cni_hostport"]).run();
    Ok(list("ip")? + &list("ip6")?)
}

fn same(_: &mut (), _: &Notes) -> Result<()> {
    for fields in [json!({}), json!({ "snat": false })] {
        let (ours, theirs) = (Host::ours()?, Host::reference()?);
        let (mut confs, mut alive) = (Vec::new(), Vec::new());
        for host in [&ours, &theirs] {
            for id in ["c1", "c2"] {
                let container = Container::new(id)?;
                let previous = attached(host, &container)?;
                let mut fields = fields.clone();
                fields["runtimeConfig"] = ports()["runtimeConfig"].clone();
                let conf = conf(&previous, &fields);
                let result = host.ask("ADD", &container, &conf)?.result()?;
                ensure!(result["ips"] == previous["ips"], "{result} is not {previous}");
                confs.push(conf);
                alive.push(container);
            }
        }
        let (mine, reference) = (listed(&ours)?, listed(&theirs)?);
        ensure!(mine == reference, "ours:\n{mine}\nthe reference's:\n{reference}");
        let localnet = |host: &Host| {
            host.netns().command("sysctl").args(["-n", "net.ipv4.conf.cni0.route_localnet"]).run()
        };
        ensure!(localnet(&ours)? == localnet(&theirs)?, "route_localnet differs");
        // Each undoes what the other made for the first container, and leaves the second alone.
        let conf = &confs[0];
        for (host, other) in [(&ours, &theirs), (&theirs, &ours)] {
            let bin = other.file("bin").display().to_string();
            let mut command = host.netns().command(other.plugin("portmap")).input(conf.to_string());
            for (key, value) in [
                ("CNI_COMMAND", "DEL"),
                ("CNI_CONTAINERID", "c1"),
                ("CNI_NETNS", ""),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", bin.as_str()),
            ] {
                command = command.env(key, value);
            }
            command.run()?;
            let left = listed(host)?;
            ensure!(!left.contains("\"c1\"") && left.contains("\"c2\""), "{left}");
        }
        ensure!(listed(&ours)? == listed(&theirs)?, "after DEL they differ");
    }
    Ok(())
}

fn check_finds(_: &mut (), _: &Notes) -> Result<()> {
    let (host, container) = (Host::ours()?, Container::new("c1")?);
    let conf = conf(&attached(&host, &container)?, &ports());
    for chain in ["hostports", "masquerading"] {
        host.ask("ADD", &container, &conf)?.result()?;
        host.ask("CHECK", &container, &conf)?.result()?;
        host.netns().command("nft").args(["flush", "chain", "ip", "cni_hostport", chain]).run()?;
        let (code, text) = host.ask("CHECK", &container, &conf)?.refusal()?;
        ensure!(code == 100 && text.contains(chain), "{code} {text}");
        for _ in 0..2 {
            host.ask("DEL", &container, &conf)?.result()?;
        }
    }
    Ok(())
}

fn reaches(_: &mut (), _: &Notes) -> Result<()> {
    let (host, container) = (Host::ours()?, Container::new("c1")?);
    host.netns().ip("link set lo up")?;
    let conf = conf(&attached(&host, &container)?, &ports());
    host.ask("ADD", &container, &conf)?.result()?;
    let listener = container.netns.run(|| Ok(TcpListener::bind("0.0.0.0:80")?))?;
    let server = thread::spawn(move || -> Result<()> {
        for _ in 0..2 {
            listener.accept()?.0.write_all(b"container")?;
        }
        Ok(())
    });
    for to in ["10.244.1.1:8080", "127.0.0.1:8080"] {
        let said = host.netns().run(|| {
            let mut said = String::new();
            TcpStream::connect(to.parse::<SocketAddr>()?).context(to)?.read_to_string(&mut said)?;
            Ok(said)
        })?;
        ensure!(said == "container", "{to}: {said}");
    }
    server.join().map_err(|_| anyhow!("the server panicked"))?
}

fn refused(_: &mut (), _: &Notes) -> Result<()> {
    let (host, container) = (Host::ours()?, Container::new("c1")?);
    let previous = attached(&host, &container)?;
    let port = |fields: Value| json!({ "runtimeConfig": { "portMappings": [fields] } });
    for (fields, expected, said) in [
        (json!({ "backend": "iptables" }), 2, "iptables"),
        (json!({ "conditionsV4": ["ip daddr 10.0.0.1"] }), 2, "conditionsV4"),
        (port(json!({ "hostPort": 0, "containerPort": 1, "protocol": "tcp" })), 7, "hostPort"),
        (port(json!({ "hostPort": 1, "containerPort": 70000, "protocol": "tcp" })), 7, "containerPort"),
        (port(json!({ "hostPort": 1, "containerPort": 1, "protocol": "icmp" })), 7, "icmp"),
        (port(json!({ "hostPort": 1, "containerPort": 1, "protocol": "tcp", "hostIP": "x" })), 7, "hostIP"),
    ] {
        let (code, text) = host.ask("ADD", &container, &conf(&previous, &fields))?.refusal()?;
        ensure!(code == expected && text.contains(said), "{fields}: {code} {text}");
    }
    let (code, text) = host.ask("ADD", &container, &conf(&Value::Null, &ports()))?.refusal()?;
    ensure!(code == 7 && text.contains("prevResult"), "{code} {text}");
    Ok(())
}
