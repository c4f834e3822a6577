#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| causeway_proto::testing::fuzz::derp_map_yaml(data));
