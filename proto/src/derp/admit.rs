//! What a relay asks an admission URL about a client, and what it is answered (`derp.md` section 10).

use std::net::IpAddr;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::json::{depth_is_bounded, deserialize_folded};
use crate::key::NodePublic;

/// Bytes of an answer that are looked at; what follows does not count.
pub const ADMIT_ANSWER_LEN_MAX: usize = 4096;

/// The question, as JSON: `{"NodePublic":"nodekey:...","Source":"203.0.113.7"}`.
#[must_use]
pub fn admit_request(key: &NodePublic, source: IpAddr) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request {
        node_public: NodePublic,
        source: String,
    }
    let request = Request { node_public: *key, source: source.to_canonical().to_string() };
    serde_json::to_vec(&request).expect("strings are always JSON")
}

/// What the first bytes of an answer say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmitAnswer {
    /// `Allow` is true.
    Allow,
    /// `Allow` is false or missing.
    Deny,
    /// Not yet a whole JSON value: more bytes may complete it.
    Incomplete,
    /// Not the JSON object that is wanted.
    Malformed,
}

#[derive(Default)]
struct Answer {
    allow: bool,
}

deserialize_folded!(Answer, "an object with the field Allow", { "Allow" => allow });

/// Reads the first JSON value of an answer, by the rules of Go's decoder: what follows it is ignored.
#[must_use]
pub fn read_admit_answer(bytes: &[u8]) -> AdmitAnswer {
    let bytes = bytes.get(..ADMIT_ANSWER_LEN_MAX).unwrap_or(bytes);
    if !depth_is_bounded(bytes) {
        return AdmitAnswer::Malformed;
    }
    // First whether there is a whole value: errors about a field hide that its text only broke off.
    match first_value::<IgnoredAny>(bytes) {
        None => return AdmitAnswer::Incomplete,
        Some(Err(error)) if error.is_eof() && bytes.len() < ADMIT_ANSWER_LEN_MAX => return AdmitAnswer::Incomplete,
        Some(_) => {}
    }
    match first_value::<Option<Answer>>(bytes) {
        Some(Ok(Some(Answer { allow: true }))) => AdmitAnswer::Allow,
        // Go takes `null` for an object without fields.
        Some(Ok(Some(Answer { allow: false }) | None)) => AdmitAnswer::Deny,
        Some(Err(_)) | None => AdmitAnswer::Malformed,
    }
}

fn first_value<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<serde_json::Result<T>> {
    serde_json::Deserializer::from_slice(bytes).into_iter().next()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_question_is_the_one_of_stock_relays() {
        let key = NodePublic::from_bytes([0xab; 32]);
        let hex = "ab".repeat(32);
        for (source, shown) in
            [("203.0.113.7", "203.0.113.7"), ("::ffff:203.0.113.7", "203.0.113.7"), ("2001:db8::1", "2001:db8::1")]
        {
            let json = admit_request(&key, source.parse().expect("address"));
            let wanted = format!(r#"{{"NodePublic":"nodekey:{hex}","Source":"{shown}"}}"#);
            assert_eq!(String::from_utf8(json).expect("text"), wanted);
        }
    }

    #[test]
    fn answers_are_read_as_go_reads_them() {
        use AdmitAnswer::{Allow, Deny, Incomplete, Malformed};
        let long = |text: &str| format!("{}{text}", " ".repeat(ADMIT_ANSWER_LEN_MAX - 4));
        for (text, answer) in [
            (r#"{"Allow":true}"#, Allow),
            (r#"{"allow":true,"Reason":["any",{}]}"#, Allow),
            ("{\"Allow\":true}\n and more", Allow),
            (r#"{"Allow":false}"#, Deny),
            (r#"{"Allow":true,"allow":false}"#, Deny),
            (r#"{"Allow":null}"#, Deny),
            ("{}", Deny),
            ("null ", Deny),
            ("", Incomplete),
            ("  ", Incomplete),
            (r#"{"Allow":tr"#, Incomplete),
            (r#"{"Allow":"true"}"#, Malformed),
            (r#"{"Allow":1}"#, Malformed),
            ("[]", Malformed),
            ("true ", Malformed),
            ("<html>", Malformed),
            (&long(r#"{"Allow":true}"#), Malformed),
            (&"[".repeat(100), Malformed),
        ] {
            assert_eq!(read_admit_answer(text.as_bytes()), answer, "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _answer = read_admit_answer(&bytes);
        }
    }
}
