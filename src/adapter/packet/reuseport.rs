//! Which of several sockets takes a datagram that arrives: a classic BPF program that the kernel runs
//! (`SO_ATTACH_REUSEPORT_CBPF`, Linux 4.5).

use nix::sys::socket::{setsockopt, sockopt};
use socket2::Socket;

/// Has the kernel choose by address and port of the sender, in turn, among `count` sockets that share the port of `first`: a
/// hash would give several ports of a node to one of few sockets.
///
/// # Errors
/// The kernel's refusal: it then shares out by a hash of its own.
pub(super) fn share_out(first: &Socket, count: usize, v6: bool) -> nix::Result<()> {
    const NETWORK: u32 = libc::SKF_NET_OFF as u32;
    // The last 32 bits of the address, and the port behind a header without options. With options it is two other bytes,
    // which may put a flow elsewhere but seldom part it.
    let (address, port) = if v6 { (20, 40) } else { (12, 20) };
    let insn = |code: u32, k| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NETWORK.wrapping_add(address)),
        insn(libc::BPF_MISC | libc::BPF_TAX, 0),
        insn(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, NETWORK.wrapping_add(port)),
        insn(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0),
        insn(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count as u32),
        insn(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    setsockopt(first, sockopt::AttachReusePortCbpf, &program)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, UdpSocket};
    use std::sync::Arc;
    use std::time::Duration;

    use crate::adapter::packet::WakeFd;
    use crate::adapter::packet::udp::OuterSocket;
    use crate::ports::{Batch, DatagramIo as _};

    const QUEUES: usize = 4;

    /// What the program is to answer.
    fn expected(from: IpAddr, port: u16) -> usize {
        let low = match from {
            IpAddr::V4(from) => from.to_bits(),
            IpAddr::V6(from) => from.to_bits() as u32,
        };
        low.wrapping_add(port.into()) as usize % QUEUES
    }

    #[test]
    fn the_kernels_program_gives_each_sender_the_socket_that_it_should() {
        let wake = Arc::new(WakeFd::new(Duration::ZERO).unwrap());
        for address in ["127.0.0.1", "::1"].map(|address| address.parse::<IpAddr>().unwrap()) {
            let free = UdpSocket::bind((address, 0)).unwrap().local_addr().unwrap();
            let socket = OuterSocket::bind(address, free.port(), QUEUES).unwrap();
            let mut queues: Vec<_> = (0..QUEUES).map(|queue| socket.io(queue, &wake, 1)).collect();
            let mut batch = Batch::new(1);
            for _ in 0..32 {
                let sender = UdpSocket::bind((address, 0)).unwrap();
                sender.send_to(b"packet", free).unwrap();
                let from = sender.local_addr().unwrap();
                // What the loopback carries is there when `send` returns.
                let took = queues.iter_mut().position(|queue| {
                    queue.recv(&mut batch).unwrap();
                    batch.received().iter().any(|received| received.from == Some(from))
                });
                assert_eq!(took, Some(expected(address, from.port())), "from {from}");
            }
        }
    }
}
