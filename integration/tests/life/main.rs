//! The daemon as its operator meets it: starting, stopping, what it is fed, and what it answers.

#![expect(clippy::disallowed_methods, reason = "tests of the lab are side effects throughout")]

mod badinput;
mod cleared;
mod cli;
mod ends;
mod held_up;
mod lifecycle;
mod map;
mod verify;

integration::group!(lifecycle, ends, badinput, cli, map, verify, cleared, held_up);
