//! Plugins at once, killed half way, attached twice, and collected.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use integration::cni::{Container, Host};
use integration::suite::{Checks, Notes, Suite};
use integration::wait;
use serde_json::{Value, json};

/// How many plugins are killed. `CNI_KILLS=1000` kills more.
const KILLS: usize = 60;

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .check("a hundred ADDs at once give a hundred addresses", at_once)
        .check("killed at any moment, then collected: nothing is left", killed)
        .check("two attachments of one container", twice)
        .check("what flannel's own plugin kept is undone", flannels)
        .check("what a reboot left is undone by the first ADD, and nothing else", rebooted)
        .checks()
}

fn at_once(_: &mut (), _: &Notes) -> Result<()> {
    let host = Host::ours()?;
    let conf = host.flannel_conf(&Value::Null);
    let containers: Vec<Container> =
        (0..100).map(|number| Container::new(&format!("c{number}"))).collect::<Result<_>>()?;
    let results: Vec<Result<Value>> = thread::scope(|scope| {
        let adds: Vec<_> = containers
            .iter()
            .map(|container| scope.spawn(|| host.ask("ADD", container, &conf)?.result()))
            .collect();
        adds.into_iter().map(|add| add.join().unwrap_or_else(|_| Err(anyhow!("an ADD panicked")))).collect()
    });
    let mut addresses = BTreeSet::new();
    for result in results {
        for ip in result?["ips"].as_array().context("no addresses")? {
            ensure!(addresses.insert(ip["address"].to_string()), "{ip} was given twice");
        }
    }
    ensure!(addresses.len() == 200, "{} addresses", addresses.len());
    for container in &containers {
        host.ask("DEL", container, &conf)?.result()?;
    }
    ensure!(host.devices()? == ["cni0"], "{:?}", host.devices()?);
    Ok(())
}

fn killed(_: &mut (), notes: &Notes) -> Result<()> {
    let kills = std::env::var("CNI_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let host = Host::ours()?;
    let conf = host.flannel_conf(&Value::Null);
    let kept = Container::new("kept")?;
    let result = host.ask("ADD", &kept, &conf)?.result()?;
    let bin = host.file("bin");
    let mut halfway = 0;
    for number in 0..kills {
        let container = Container::new(&format!("k{number}"))?;
        let netns = container.path();
        // Every third dies in its DEL.
        let verb = if number % 3 == 2 {
            host.ask("ADD", &container, &conf)?.result()?;
            "DEL"
        } else {
            "ADD"
        };
        let env = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &container.id),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", bin.to_str().context("a path that is no text")?),
        ];
        let log = std::fs::File::create(host.file("log"))?;
        let mut child = host.command("flannel", &env, &conf).log_to(log).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            std::io::Write::write_all(&mut stdin, conf.to_string().as_bytes())?;
        }
        thread::sleep(Duration::from_micros(200 * (number as u64 * 7 % 97)));
        child.kill()?;
        halfway += usize::from(!child.wait()?.success());
    }
    // The runtime's view: only one container is left, and the namespaces of the others are gone.
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": "kept", "ifname": "eth0" }] });
    host.ask("GC", &kept, &host.flannel_conf(&valid))?.result()?;
    let addresses: Vec<String> = host
        .state("networks")?
        .into_iter()
        .filter(|(name, _)| !name.contains("last_reserved_ip"))
        .map(|(name, owner)| format!("{name} {owner:?}"))
        .collect();
    ensure!(addresses.len() == 2 && addresses.iter().all(|line| line.contains("kept")), "{addresses:?}");
    let files = host.state("flannel")?;
    ensure!(files.keys().all(|name| name.starts_with("kept")), "{:?}", files.keys());
    wait::until_true("the devices of the dead are gone", || Ok(host.devices()?.len() == 2))?;
    host.ask("CHECK", &kept, &host.flannel_conf(&json!({ "prevResult": result })))?.result()?;
    notes.add(format!("{halfway} of {kills} plugins died half way; after GC nothing of them was left"));
    Ok(())
}

fn twice(_: &mut (), _: &Notes) -> Result<()> {
    let (host, container) = (Host::ours()?, Container::new("c1")?);
    let conf = host.flannel_conf(&Value::Null);
    host.ask_for("ADD", &container, "eth0", &conf)?.result()?;
    host.ask_for("ADD", &container, "net1", &conf)?.result()?;
    for round in 1..=2 {
        host.ask_for("DEL", &container, "net1", &conf)?
            .result()
            .with_context(|| format!("DEL number {round}"))?;
        let left = host.state("networks")?;
        let mine = left.values().filter(|owner| owner.contains("eth0")).count();
        ensure!(mine == 2 && !left.values().any(|owner| owner.contains("net1")), "{left:?}");
        ensure!(host.state("flannel")?.len() == 2, "{:?}", host.state("flannel")?);
    }
    ensure!(container.netns.ip_show("-br link show")?.contains("eth0"), "eth0 went with net1");
    host.ask_for("DEL", &container, "eth0", &conf)?.result()?;
    ensure!(host.state("flannel")?.is_empty(), "{:?}", host.state("flannel")?);
    Ok(())
}

/// flannel's plugin names its file by the container alone.
fn flannels(_: &mut (), _: &Notes) -> Result<()> {
    let (host, container) = (Host::ours()?, Container::new("c1")?);
    let conf = host.flannel_conf(&Value::Null);
    for verb in ["DEL", "GC"] {
        host.ask("ADD", &container, &conf)?.result()?;
        std::fs::remove_file(host.file("flannel").join("c1@eth0"))?;
        let conf = host.flannel_conf(&json!({ "cni.dev/valid-attachments": [] }));
        host.ask(verb, &container, &conf)?.result()?;
        ensure!(host.state("flannel")?.is_empty(), "{verb}: {:?}", host.state("flannel")?);
        let left = host.state("networks")?;
        ensure!(left.keys().all(|name| name.contains("last_reserved_ip")), "{verb}: {left:?}");
        // GC comes when the container is gone; here it is not.
        container
            .netns
            .ip("link delete eth0")
            .or_else(|error| if verb == "DEL" { Ok(()) } else { Err(error) })?;
    }
    Ok(())
}

fn rebooted(_: &mut (), _: &Notes) -> Result<()> {
    let host = Host::ours()?;
    let conf = host.flannel_conf(&Value::Null);
    let before = Container::new("before")?;
    host.ask("ADD", &before, &conf)?.result()?;
    // A reference plugin has reserved for a container of this boot, and flannel's own has kept what it did.
    let since = host.bridge_conf("1.0.0", &json!({ "name": "cbr0" }));
    let since = json!({ "cniVersion": "1.0.0", "name": "cbr0", "type": "host-local", "ipam": since["ipam"] });
    let reference = Container::new("since")?;
    host.ask("ADD", &reference, &since)?.result()?;
    std::fs::write(host.file("flannel").join("since"), r#"{"type":"bridge","name":"cbr0"}"#)?;
    let owners = || -> Result<BTreeSet<String>> {
        let files =
            host.state("networks")?.into_iter().filter(|(name, _)| !name.contains("last_reserved_ip"));
        Ok(files.filter_map(|(_, owner)| owner.split_whitespace().next().map(str::to_owned)).collect())
    };
    let are = |expected: &[&str]| -> Result<()> {
        let owners = owners()?;
        ensure!(owners.iter().eq(expected), "addresses are reserved for {owners:?}, not for {expected:?}");
        Ok(())
    };
    let first = Container::new("first")?;
    host.ask("ADD", &first, &conf)?.result()?;
    are(&["before", "first", "since"])?;
    // This is what a reboot changes: the kernel's ID of the boot is another than the one that was kept.
    std::fs::write(host.file("flannel").join("@boot"), "00000000-0000-0000-0000-000000000000\n")?;
    let last = Container::new("last")?;
    host.ask("ADD", &last, &conf)?.result()?;
    are(&["last", "since"])?;
    let kept = host.state("flannel")?;
    ensure!(kept.keys().eq(["last", "last@eth0", "since"]), "{kept:?}");
    // Within one boot nothing is taken.
    let next = Container::new("next")?;
    host.ask("ADD", &next, &conf)?.result()?;
    are(&["last", "next", "since"])
}
