//! The container image, made of this build's programs and of this machine's iptables. What `make image` does besides, it does
//! by cargo and apt: `make image-repro` tries that.

#![expect(clippy::disallowed_methods, reason = "these tests read files and run programs")]

mod layout;
