//! Pure packet code of Loden: bytes in, what to send out.
#![no_std]
#![forbid(unsafe_code)]
