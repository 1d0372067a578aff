//! Packets between pods over every backend: who reaches whom, every size, every family, and what the wire carries.

#![expect(clippy::disallowed_methods, reason = "tests of the lab are side effects throughout")]

mod dual_stack;
mod ecn;
mod icmp_errors;
mod ipv6_only;
mod lab;
mod matrix;
mod returning;
mod sizes;
mod underlay;
mod vxlan;
mod wire;

integration::group!(
    lab,
    matrix,
    sizes,
    icmp_errors,
    returning,
    underlay,
    vxlan,
    dual_stack,
    ipv6_only,
    wire,
    ecn
);
