//! Rules of the firewall and of conntrack: in every home, byte for byte, and who may send into a tunnel.

#![expect(clippy::disallowed_methods, reason = "tests of the lab are side effects throughout")]

mod conntrack;
mod crowded;
mod own_tables;
mod rules;
mod rules_modes;
mod tracer;
mod vxlan_doors;

integration::group!(rules, rules_modes, own_tables, vxlan_doors, conntrack, crowded);
