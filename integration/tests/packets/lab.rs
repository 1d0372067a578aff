//! The lab tests itself before it is trusted to test anything else: no daemon runs here.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::probe::bulk::{self, End};
use integration::probe::capture::Capture;
use integration::probe::loss::{Dropper, LossCounter};
use integration::probe::{http, icmp, reach, udp};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, Wire};
use integration::wait;

pub(super) fn suite() -> Checks {
    Suite::<Plain>::without_daemon()
        .check("all pods reach each other over plain routes", everybody)
        .check("an echo of 2,000 bytes is fragmented on the wire", fragments)
        .check("a full-size echo passes and one byte more is refused", full_size)
        .check("the loss counter sees exactly what is dropped", sees_loss)
        .check("a missing answer is an error", sees_silence)
        .check("a translated source address is an error", sees_translation)
        .check("a bulk transfer is whole", bulk_is_whole)
        .check("a segmented wire carries no packet above its MTU", segmented)
        .check("a namespace dies with its last user", nothing_left)
        .checks()
}

/// Three nodes joined by plain routes.
struct Plain(Cluster);

impl Setup for Plain {
    fn build() -> Result<Self> {
        let mut cluster = Cluster::builder().build()?;
        cluster.route_without_overlay()?;
        Ok(Self(cluster))
    }

    fn explain(&self) -> String {
        String::new()
    }
}

fn everybody(lab: &mut Plain, notes: &Notes) -> Result<()> {
    let mut count = 0;
    for (from, to) in reach::pairs(&lab.0).filter(|(from, _)| matches!(from, reach::Source::Pod(_))) {
        reach::check(from, to)?;
        count += 1;
    }
    ensure!(count == 30, "six pods make 30 ordered pairs, not {count}");
    notes.add(format!("{count} pairs asked, twice over UDP and twice over HTTP each"));
    Ok(())
}

fn fragments(lab: &mut Plain, _: &Notes) -> Result<()> {
    let (from, to) = (lab.0.pod("n1.a")?, lab.0.pod("n2.a")?);
    let wire = Capture::open(lab.0.node("n1")?.ns(), "eth0")?;
    udp::echo(from.ns(), to.ip(), 2000)?;
    let longest = wire.frames()?.iter().map(Vec::len).max().unwrap_or_default();
    ensure!((1000..=1514).contains(&longest), "the longest frame had {longest} bytes");
    ensure!(http::echo(from.ns(), to.ip(), &[b'x'; 2000])? == [b'x'; 2000]);
    Ok(())
}

fn full_size(lab: &mut Plain, _: &Notes) -> Result<()> {
    let (from, to) = (lab.0.pod("n1.a")?, lab.0.pod("n3.b")?);
    icmp::ping(from.ns(), to.ip(), 1500)?;
    ensure!(icmp::ping(from.ns(), to.ip(), 1501).is_err(), "1,501 bytes passed a link of 1,500");
    let six = lab.0.node("n2")?.address6();
    icmp::ping(lab.0.node("n1")?.ns(), six, 1500)?;
    Ok(())
}

fn sees_loss(lab: &mut Plain, notes: &Notes) -> Result<()> {
    let (from, to) = (lab.0.pod("n1.a")?, lab.0.pod("n2.a")?);
    let counter = LossCounter::start(from.ns(), to.ip(), Duration::from_millis(1))?;
    std::thread::sleep(Duration::from_millis(200));
    let clean = counter.stop()?;
    ensure!(clean.sent > 100 && clean.lost == 0, "nothing drops, yet {clean:?}");

    let dropper = Dropper::every(10, lab.0.node("n2")?.ns())?;
    let counter = LossCounter::start(from.ns(), to.ip(), Duration::from_millis(1))?;
    std::thread::sleep(Duration::from_millis(500));
    let lossy = counter.stop()?;
    drop(dropper);
    ensure!(lossy.lost == lossy.sent.div_ceil(10), "every tenth was dropped, yet {lossy:?}");
    notes.add(format!("with every tenth dropped: {} of {} lost", lossy.lost, lossy.sent));
    Ok(())
}

fn sees_silence(lab: &mut Plain, _: &Notes) -> Result<()> {
    let (from, to) = (lab.0.pod("n1.a")?, lab.0.pod("n2.a")?);
    let _all = Dropper::every(1, lab.0.node("n2")?.ns())?;
    let asker = udp::Asker::new(from.ns(), to.ip())?;
    ensure!(
        asker.ask(b"hostname", Duration::from_millis(100)).is_err(),
        "an answer came through a closed door"
    );
    Ok(())
}

fn sees_translation(lab: &mut Plain, _: &Notes) -> Result<()> {
    let (from, to) = (lab.0.pod("n1.a")?, lab.0.pod("n2.a")?);
    let node = lab.0.node("n1")?.ns();
    node.nft(
        "table ip lab_nat { chain out { type nat hook postrouting priority 100; oif eth0 masquerade\n}\n}",
    )?;
    let seen = reach::check(reach::Source::Pod(from), to);
    node.nft("delete table ip lab_nat")?;
    let said = seen.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(said.contains("192.168.77.1"), "a masqueraded source went unnoticed: {said}");
    Ok(())
}

fn bulk_is_whole(lab: &mut Plain, notes: &Notes) -> Result<()> {
    let (from, to) = (lab.0.pod("n1.a")?, lab.0.pod("n2.a")?);
    let (from, to) = (End { ns: from.ns(), ip: from.ip() }, End { ns: to.ns(), ip: to.ip() });
    let done = bulk::transfer(from, to, 10_000_000, |_| {})?;
    ensure!(done.bytes == 10_000_000 && done.sent == done.received, "{done:?}");
    let rate = bulk::throughput(from, to, Duration::from_millis(500), |_| {})?;
    ensure!(rate > 0.0);
    notes.add(format!("pod to pod over plain routes: {}", bulk::human_rate(rate)));
    Ok(())
}

fn segmented(_: &mut Plain, notes: &Notes) -> Result<()> {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).wire(Wire::Segmented).build()?;
    cluster.route_without_overlay()?;
    let wire = Capture::open(cluster.node("n1")?.ns(), "eth0")?;
    let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    let (from, to) = (End { ns: from.ns(), ip: from.ip() }, End { ns: to.ns(), ip: to.ip() });
    bulk::transfer(from, to, 1_000_000, |_| {})?;
    let frames = wire.frames()?;
    let longest = frames.iter().map(Vec::len).max().unwrap_or_default();
    ensure!(frames.len() > 600 && longest <= 1514, "{} frames, the longest of {longest} bytes", frames.len());
    let rate = bulk::throughput(from, to, Duration::from_millis(500), |_| {})?;
    notes.add(format!("the same over a segmented wire: {}", bulk::human_rate(rate)));
    Ok(())
}

fn nothing_left(_: &mut Plain, notes: &Notes) -> Result<()> {
    let mut cluster = Cluster::builder().nodes(1).pods_per_node(1).build()?;
    cluster.route_without_overlay()?;
    let switch = cluster.switch().clone();
    let ports = || -> Result<usize> { Ok(switch.ip_show("-o link show type veth")?.lines().count()) };
    ensure!(ports()? == 1, "one node makes one port");
    let mut sleeper = cluster.node("n1")?.ns().command("sleep").arg("1000").spawn()?;
    cluster.remove_node("n1")?;
    ensure!(ports()? == 1, "a process still lives in the node");
    sleeper.kill()?;
    sleeper.wait()?;
    let took = wait::until_true("the removed node's port is gone", || Ok(ports()? == 0))?;
    notes.took("a removed node's devices are gone after", took);
    Ok(())
}
