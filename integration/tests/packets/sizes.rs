//! Every packet size there is, over each backend: what is sent comes back, byte by byte, and what does not fit is
//! refused with the size that does.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use integration::backends::{Backend, EachBackend};
use integration::probe::echo::{self, Echo, Fragments, datagrams_of, messages_of};
use integration::probe::loss::Dropper;
use integration::probe::{http, icmp};
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, Pod};
use integration::wait::human;

pub(super) fn suite() -> Checks {
    Suite::<EachBackend>::new()
        .check("A3.7 the harness sees one datagram in a thousand missing", a3_07_sees_loss)
        .each("A3.7 every datagram from 0 to 3,000 bytes comes back whole", a3_07_every_datagram)
        .each("A3.7 every message from 1 to 3,000 bytes comes back whole over TCP", a3_07_every_message)
        .each("A3.7 every datagram that fits passes with DF, and none that does not", a3_07_dont_fragment)
        .each("A3.7 10,000 and 65,507 bytes come back whole", a3_07_large)
        .each("A3.7 requests and answers around every edge come back whole over HTTP", a3_07_http)
        .checks()
}

/// Headers of UDP and IP, bytes.
fn headers(at: IpAddr) -> usize {
    if at.is_ipv4() { 28 } else { 48 }
}

/// Who asks, and a server that says everything back on each address of a pod on the same or on another node.
fn ends(cluster: &Cluster) -> Result<(&Pod, Vec<(IpAddr, Echo)>)> {
    let mut servers = Vec::new();
    for name in ["n2.a", "n1.b"] {
        let to = cluster.pod(name)?;
        for at in to.ips() {
            servers.push((at, Echo::start(to.ns(), at)?));
        }
    }
    Ok((cluster.pod("n1.a")?, servers))
}

fn a3_07_sees_loss(lab: &mut EachBackend, _: &Notes) -> Result<()> {
    let cluster = lab.cluster(Backend::Vxlan)?;
    let (from, servers) = ends(cluster)?;
    let (at, _) = servers.first().context("a server")?;
    let dropper = Dropper::every_of(1000, echo::PORT, cluster.node("n1")?.ns())?;
    let swept = datagrams_of(from.ns(), *at, Fragments::Allowed, 0..=3000);
    drop(dropper);
    let said = swept.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(said.contains("did not come back"), "three datagrams of 3,001 were dropped: `{said}`");
    Ok(())
}

fn a3_07_every_datagram(lab: &mut EachBackend, backend: Backend, notes: &Notes) -> Result<()> {
    let cluster = lab.cluster(backend)?;
    let (from, servers) = ends(cluster)?;
    let (start, mut count) = (Instant::now(), 0);
    for (at, _server) in &servers {
        count += datagrams_of(from.ns(), *at, Fragments::Allowed, 0..=3000)
            .with_context(|| format!("{backend}, to {at}"))?;
    }
    notes.add(format!("{backend}: {count} datagrams came back whole in {}", human(start.elapsed())));
    Ok(())
}

fn a3_07_every_message(lab: &mut EachBackend, backend: Backend, notes: &Notes) -> Result<()> {
    let cluster = lab.cluster(backend)?;
    let (from, servers) = ends(cluster)?;
    let mut count = 0;
    for (at, _server) in &servers {
        count += messages_of(from.ns(), *at, 1..=3000).with_context(|| format!("{backend}, to {at}"))?;
    }
    notes.add(format!("{backend}: {count} messages over TCP came back whole"));
    Ok(())
}

fn a3_07_dont_fragment(lab: &mut EachBackend, backend: Backend, notes: &Notes) -> Result<()> {
    let cluster = lab.cluster(backend)?;
    let mtu = usize::try_from(1500 - backend.overhead())?;
    let (from, servers) = ends(cluster)?;
    for (at, _server) in &servers {
        ensure!(from.mtu() as usize == mtu, "pods have links of {}", from.mtu());
        let largest = mtu - headers(*at);
        datagrams_of(from.ns(), *at, Fragments::Forbidden, 0..=largest)
            .with_context(|| format!("{backend}, to {at}"))?;
        let refused = datagrams_of(from.ns(), *at, Fragments::Forbidden, std::iter::once(largest + 1));
        let said = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(said.contains("too long"), "{backend}, to {at}: {} bytes: `{said}`", largest + 1);
        icmp::ping(from.ns(), *at, mtu)?;
    }
    notes.add(format!("{backend}: with DF every datagram of up to {mtu} bytes passes, headers included"));
    Ok(())
}

fn a3_07_large(lab: &mut EachBackend, backend: Backend, _: &Notes) -> Result<()> {
    const ROUNDS: usize = 10;
    let cluster = lab.cluster(backend)?;
    let (from, servers) = ends(cluster)?;
    for (at, _server) in &servers {
        let sizes = std::iter::repeat_n([10_000, 65_507], ROUNDS).flatten();
        let count = datagrams_of(from.ns(), *at, Fragments::Allowed, sizes.clone())
            .with_context(|| format!("{backend}, to {at}"))?;
        ensure!(count == 2 * ROUNDS);
        messages_of(from.ns(), *at, sizes).with_context(|| format!("{backend}, to {at}"))?;
    }
    Ok(())
}

/// The sizes at which others have found holes: a few bytes around one packet, less what a tunnel and IPsec may take.
fn a3_07_http(lab: &mut EachBackend, backend: Backend, notes: &Notes) -> Result<()> {
    let cluster = lab.cluster(backend)?;
    let from = cluster.pod("n1.a")?;
    let mtu = usize::try_from(from.mtu())?;
    let mut requests = 0;
    for name in ["n2.a", "n1.b"] {
        for at in cluster.pod(name)?.ips() {
            let edges = [mtu - 52, mtu - 190].into_iter().flat_map(|edge| (edge - 80..=edge + 30).step_by(5));
            for size in edges.chain([10, 2000, 10_000]) {
                let body = vec![b'a' + u8::try_from(size % 26)?; size];
                ensure!(
                    http::echo(from.ns(), at, &body)? == body,
                    "{backend}: a POST of {size} bytes to {at}"
                );
                let text = String::from_utf8(body)?;
                // A request line has no length of its own, so this is the size of the question and of the answer.
                let got = http::get(from.ns(), at, &format!("/echo?msg={text}"))?;
                ensure!(got == text, "{backend}: a GET of {size} bytes to {at}");
                requests += 2;
            }
        }
    }
    notes.add(format!("{backend}: {requests} requests of 10 to 10,000 bytes over HTTP came back whole"));
    Ok(())
}
