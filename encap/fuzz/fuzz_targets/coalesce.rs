#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| encap_fuzz::offload::coalesce(data));
