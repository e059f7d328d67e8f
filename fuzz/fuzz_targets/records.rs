#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gpt4roi_hostile::records(bytes));
