//! The fuzzer of the configuration; `proto/fuzz/run` builds and runs it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| causeway_node::config::fuzz::config(data));
