//! From exec to exit: what is there when it says ready, what stays when it stops, what a crash costs.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::fixture::Two;
use integration::probe::loss::LossCounter;
use integration::probe::reach::{self, Source};
use integration::probe::udp::{self, Asker};
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, NETWORK, Node};
use integration::wait;
use nix::sys::signal::Signal;

pub(super) fn suite() -> Checks {
    Suite::<Two>::new()
        .check("subnet.env appears when pods can be served, not before", subnet_env_comes_last)
        .check("subnet.env has flannel's bytes, mode and directory", subnet_env_bytes)
        .check("an idle daemon uses no CPU", idle)
        .check("systemd is told READY=1", sd_notify)
        .check(
            "without descriptors for three seconds: said, over by itself, and logged both times",
            descriptors,
        )
        .check("a second daemon is refused and the first goes on", second)
        .check("SIGTERM ends it with exit 0 and leaves kernel state", sigterm)
        .check("SIGINT does too", sigint)
        .check("kill -9 and a start: everything as before", kill_and_start)
        .check("it stops while it waits for its own Node", stop_while_waiting)
        .check("cleanup is refused while a daemon runs", cleanup_refused)
        .check("cleanup removes what is ours and nothing else", cleanup)
        .checks()
}

fn connected(cluster: &Cluster) -> Result<()> {
    let (here, there) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    reach::check(Source::Pod(here), there)?;
    reach::check(Source::Pod(there), here)
}

fn restart(cluster: &mut Cluster, signal: Signal) -> Result<Duration> {
    cluster.node_mut("n1")?.stop_daemon(signal)?;
    cluster.start_daemon("n1")?;
    cluster.node_mut("n1")?.daemon_mut()?.wait_ready()
}

fn subnet_env_comes_last(two: &mut Two, notes: &Notes) -> Result<()> {
    let mut ready = Vec::new();
    for _ in 0..5 {
        two.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
        std::fs::remove_file(two.0.node("n1")?.subnet_file())?;
        two.0.start_daemon("n1")?;
        let node = two.0.node("n1")?;
        let look = || Ok(node.subnet_file().exists().then_some(()));
        let (asked, peer) = (node.ns(), two.0.pod("n2.a")?.ip());
        wait::until("subnet.env", look)?;
        // At once, with no second try: what a CNI plugin may start now has to work.
        let answer = Asker::new(asked, peer)?.ask(b"hostname", udp::PATIENCE)?.0;
        ensure!(answer == b"n2.a");
        ready.push(wait::human(two.0.node_mut("n1")?.daemon_mut()?.wait_ready()?));
    }
    notes.add(format!("ready after exec: {}", ready.join(", ")));
    Ok(())
}

fn subnet_env_bytes(two: &mut Two, _: &Notes) -> Result<()> {
    let path = two.0.node("n1")?.subnet_file();
    let text = std::fs::read_to_string(&path)?;
    let expected = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
    ensure!(text == expected, "{text}");
    let mode =
        |path: &std::path::Path| Ok::<_, anyhow::Error>(path.metadata()?.permissions().mode() & 0o7777);
    ensure!(mode(&path)? == 0o644, "subnet.env has mode {:o}", mode(&path)?);
    let directory = path.parent().context("a directory")?;
    ensure!(mode(directory)? == 0o755, "its directory has mode {:o}", mode(directory)?);
    let socket = directory.join("flanneld.sock");
    ensure!(mode(&socket)? == 0o600, "the socket has mode {:o}", mode(&socket)?);
    Ok(())
}

fn idle(two: &mut Two, notes: &Notes) -> Result<()> {
    let daemon = two.0.node("n1")?.daemon()?;
    let used = || -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    };
    let before = used()?;
    std::thread::sleep(Duration::from_secs(3));
    // In ticks of 10 ms: a loop that polls would use hundreds, a timer each second uses none or one.
    let ticks = used()? - before;
    notes.add(format!(
        "idle for 3 s: {} ms of CPU, {} MB resident",
        ticks * 10,
        daemon.resident()? / 1_000_000
    ));
    ensure!(ticks <= 10, "{ticks} ticks of 10 ms in 3 s");
    Ok(())
}

fn sd_notify(two: &mut Two, _: &Notes) -> Result<()> {
    let path = two.0.dir().join("notify.sock");
    let systemd = UnixDatagram::bind(&path)?;
    systemd.set_read_timeout(Some(wait::DEADLINE))?;
    two.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    let daemon = two.0.launch("n1")?.env("NOTIFY_SOCKET", &path).spawn()?;
    two.0.node_mut("n1")?.adopt(daemon);
    let mut buffer = [0; 256];
    let length = systemd.recv(&mut buffer).context("systemd was told nothing")?;
    let told = String::from_utf8_lossy(&buffer[..length]);
    ensure!(told.lines().any(|line| line == "READY=1"), "systemd was told `{told}`");
    let answer = two.0.node("n1")?.daemon()?.get("/readyz")?;
    ensure!(answer.status == 200, "READY=1 before readiness: {}", answer.body);
    Ok(())
}

/// The limits on open files of a process: soft and hard.
fn open_files(pid: u32, limit: Option<(u64, u64)>) -> Result<(u64, u64)> {
    let id = pid.to_string();
    let mut command = std::process::Command::new("prlimit");
    command.args(["--pid", &id, "--noheadings", "--raw", "--output", "SOFT,HARD"]);
    match limit {
        None => command.arg("--nofile"),
        // The hard limit stays, so that the soft one can be put back.
        Some((soft, hard)) => command.arg(format!("--nofile={soft}:{hard}")),
    };
    let output = command.output().context("run prlimit")?;
    ensure!(output.status.success(), "prlimit: {}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut limits = shown.split_whitespace().filter_map(|word| word.parse().ok());
    Ok((limits.next().unwrap_or_default(), limits.next().unwrap_or_default()))
}

fn descriptors(two: &mut Two, notes: &Notes) -> Result<()> {
    let node = two.0.node("n1")?;
    let daemon = node.daemon()?;
    let before = open_files(daemon.pid(), None)?;
    open_files(daemon.pid(), Some((20, before.1)))?;
    std::thread::sleep(Duration::from_secs(3));
    // Nothing can be asked meanwhile: a connection needs a descriptor, too.
    open_files(daemon.pid(), Some(before))?;
    let took = wait::until_true("ready again", || {
        Ok(daemon.get("/readyz").is_ok_and(|answer| answer.body == "flanneld is ready"))
    })
    .with_context(|| {
        format!("/readyz says {:?}\n{}", daemon.get("/readyz"), daemon.log().unwrap_or_default())
    })?;
    notes.took("ready after descriptors are back", took);
    let log = daemon.log()?;
    let lines = |part: &str| log.lines().filter(|line| line.contains(part)).count();
    ensure!(lines("Too many open files") > 0, "the lack of descriptors is not said:\n{log}");
    for code in ["SubnetFile", "KernelUnreadable"] {
        let lines = log.lines().filter(|line| line.contains(&format!("code=\"{code}\"")));
        let (said, over): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.contains("WARN"));
        ensure!(said.len() == over.len(), "{code} was raised and cleared unequally often:\n{log}");
    }
    ensure!(lines("repaired what") == 0, "what could not be read was taken for changed:\n{log}");
    connected(&two.0)
}

fn second(two: &mut Two, _: &Notes) -> Result<()> {
    let pid = two.0.node("n1")?.daemon()?.pid();
    let exit = two.0.launch("n1")?.set("--healthz-port", "8082").run_to_end()?;
    ensure!(exit.code == Some(1), "{exit:?}");
    ensure!(exit.said.contains(&pid.to_string()), "who runs already is not said: {}", exit.said);
    ensure!(two.0.node_mut("n1")?.daemon_mut()?.is_running()?);
    // The first one's socket still answers, and its traffic flows.
    ensure!(two.0.node("n1")?.route("n2")?.is_some());
    connected(&two.0)
}

fn stop(two: &mut Two, notes: &Notes, signal: Signal) -> Result<()> {
    let (status, took) = two.0.node_mut("n1")?.stop_daemon(signal)?;
    notes.took(&format!("{signal} to exit"), took);
    ensure!(status.code() == Some(0), "{status}");
    let node = two.0.node("n1")?;
    wait::until_true("flannel0 dies with its process", || Ok(node.link("flannel0")?.is_none()))?;
    ensure!(node.has_firewall()?, "the traffic rules are gone, and with it the masquerading of pods");
    ensure!(node.subnet_file().exists(), "subnet.env is gone");
    ensure!(
        !node.subnet_file().with_file_name("flanneld.sock").exists(),
        "a socket nobody listens on is left"
    );
    two.0.start_daemon("n1")?;
    two.0.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    connected(&two.0)
}

fn sigterm(two: &mut Two, notes: &Notes) -> Result<()> {
    stop(two, notes, Signal::SIGTERM)
}

fn sigint(two: &mut Two, notes: &Notes) -> Result<()> {
    stop(two, notes, Signal::SIGINT)
}

/// What of a node must be the same after a restart.
fn state(node: &Node) -> Result<String> {
    let link = node.link("flannel0")?.context("no flannel0")?;
    // The interface index counts devices ever made, and traffic counters are not state.
    let link = link.split_once(": ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    let addresses = node.ns().ip_show("-4 -brief address show dev flannel0")?;
    let routes = node.ns().ip_show("route show")?;
    let rules = node.iptables_save("iptables-nft-save")?;
    Ok(format!("{link}\n{addresses}\n{routes}\n{rules}\n{}", std::fs::read_to_string(node.subnet_file())?))
}

fn kill_and_start(two: &mut Two, notes: &Notes) -> Result<()> {
    let before = state(two.0.node("n1")?)?;
    let (from, to) = (two.0.pod("n1.a")?, two.0.pod("n2.a")?);
    let counter = LossCounter::start(from.ns(), to.ip(), Duration::from_millis(2))?;
    std::thread::sleep(Duration::from_millis(300));
    let ready = restart(&mut two.0, Signal::SIGKILL)?;
    std::thread::sleep(Duration::from_millis(300));
    let loss = counter.stop()?;
    notes.took("kill -9: the next daemon ready after its exec", ready);
    notes.took("kill -9: longest gap for pods", loss.longest_gap);
    ensure!(loss.lost < loss.sent, "nothing came through again: {loss:?}");
    connected(&two.0)?;
    let after = state(two.0.node("n1")?)?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

fn stop_while_waiting(_: &mut Two, _: &Notes) -> Result<()> {
    let mut cluster = Cluster::builder().nodes(1).build()?;
    cluster.publish_only(&[])?;
    cluster.start_daemon("n1")?;
    let node = cluster.node_mut("n1")?;
    wait::until_true("it answers", || Ok(node.daemon()?.get("/readyz")?.status == 503))?;
    let (status, _) = node.stop_daemon(Signal::SIGTERM)?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

fn cleanup_refused(two: &mut Two, _: &Notes) -> Result<()> {
    let node = two.0.node("n1")?;
    let output = node.flanneld(&["cleanup"])?.output()?;
    ensure!(output.status.code() == Some(2), "cleanup under a living daemon ended with {}", output.status);
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains(&node.daemon()?.pid().to_string()), "who runs is not said: {said}");
    connected(&two.0)
}

fn cleanup(two: &mut Two, _: &Notes) -> Result<()> {
    let node = two.0.node("n1")?;
    let foreign =
        "table inet other {\n chain input {\n type filter hook input priority 0\n tcp dport 1 drop\n }\n}";
    node.ns().nft(foreign)?;
    node.ns().ip("route add 172.30.1.0/24 via 192.168.77.254")?;
    let directory = node.subnet_file().parent().context("a directory")?.to_path_buf();
    std::fs::write(directory.join("somebody-elses"), "file")?;
    two.0.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;

    let node = two.0.node("n1")?;
    let said = node.flanneld(&["cleanup"])?.run()?;
    ensure!(said.contains("FLANNEL-POSTRTG"), "cleanup does not say what it removed: {said}");
    ensure!(!node.has_firewall()? && node.link("flannel0")?.is_none());
    ensure!(!node.ns().ip_show("route show")?.contains(NETWORK));
    let left: Vec<_> = std::fs::read_dir(&directory)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left == ["somebody-elses"], "left in the run directory: {left:?}");
    ensure!(
        node.ns().command("nft").args(["list", "tables"]).run()?.contains("inet other"),
        "a foreign table is gone"
    );
    ensure!(node.ns().ip_show("route show")?.contains("172.30.1.0/24"), "a foreign route is gone");

    let again = node.flanneld(&["cleanup"])?.run()?;
    ensure!(again.contains("nothing"), "a second cleanup says `{again}`");
    node.ns().nft("delete table inet other")?;
    node.ns().ip("route del 172.30.1.0/24")?;
    two.0.start_daemon("n1")?;
    two.0.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    connected(&two.0)
}
