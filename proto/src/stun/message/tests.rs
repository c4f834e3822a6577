#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::testing::socket_addr;

const TRANSACTION: TransactionId = *b"transaction!";

/// A message of this type with these attributes, each padded; FINGERPRINT is appended if wanted.
fn message(message_type: u16, attributes: &[(u16, &[u8])], with_fingerprint: bool) -> Vec<u8> {
    let mut bytes = message_type.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(MAGIC_COOKIE.to_be_bytes());
    bytes.extend(TRANSACTION);
    for (kind, value) in attributes {
        bytes.extend(kind.to_be_bytes());
        bytes.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        bytes.extend(*value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    if with_fingerprint {
        let value = fingerprint(&bytes);
        bytes.extend([0x80, 0x28, 0, 4]);
        bytes.extend(value.to_be_bytes());
    }
    bytes
}

#[test]
fn the_request_of_every_client_is_taken() {
    let request = binding_request(&TRANSACTION);
    assert_eq!(request.len(), REQUEST_LEN);
    assert_eq!(parse_binding_request(&request, true), Ok(TRANSACTION));
    // The header's length is not checked, but it is covered by the fingerprint.
    let mut built = message(BINDING_REQUEST, &[(ATTRIBUTE_SOFTWARE, SOFTWARE)], true);
    assert_eq!(parse_binding_request(&built, true), Ok(TRANSACTION));
    built[3] = 20;
    assert_eq!(parse_binding_request(&built, true), Err(StunError::Fingerprint));
}

#[test]
fn requests_that_are_not_exactly_right_are_refused_by_name() {
    let software = (ATTRIBUTE_SOFTWARE, &SOFTWARE[..]);
    let last = binding_request(&TRANSACTION);
    let changed = |at: usize, value: u8| {
        let mut bytes = last;
        bytes[at] = value;
        bytes.to_vec()
    };
    let after_fingerprint = {
        let mut bytes = last.to_vec();
        bytes.extend([0x80, 0x22, 0, 0]);
        bytes
    };
    let cases = [
        (vec![], StunError::NotStun),
        (last[..19].to_vec(), StunError::NotStun),
        (changed(0, 0x40), StunError::NotStun),
        (changed(4, 0), StunError::NotStun),
        (changed(1, 0x11), StunError::Type(0x0011)),
        (changed(0, 0x01), StunError::Type(0x0101)),
        (last[..39].to_vec(), StunError::Attributes),
        (last[..22].to_vec(), StunError::Attributes),
        (changed(22, 0xff), StunError::Attributes),
        (last[..20].to_vec(), StunError::Fingerprint),
        (last[..32].to_vec(), StunError::Fingerprint),
        (changed(39, last[39] ^ 1), StunError::Fingerprint),
        (after_fingerprint, StunError::Fingerprint),
        (message(BINDING_REQUEST, &[], true), StunError::Software),
        (message(BINDING_REQUEST, &[(ATTRIBUTE_SOFTWARE, b"tailnodf")], true), StunError::Software),
        (message(BINDING_REQUEST, &[software], false), StunError::Fingerprint),
    ];
    for (bytes, want) in cases {
        assert_eq!(parse_binding_request(&bytes, true), Err(want), "{bytes:02x?}");
    }
}

#[test]
fn software_may_be_anything_if_the_operator_says_so_but_the_fingerprint_may_not() {
    for attributes in [&[][..], &[(ATTRIBUTE_SOFTWARE, &b"x"[..])]] {
        assert_eq!(parse_binding_request(&message(BINDING_REQUEST, attributes, true), false), Ok(TRANSACTION));
        let without = message(BINDING_REQUEST, attributes, false);
        assert_eq!(parse_binding_request(&without, false), Err(StunError::Fingerprint));
    }
}

#[test]
fn some_software_attribute_has_to_match_not_each() {
    let attributes = [(ATTRIBUTE_SOFTWARE, &b"other"[..]), (ATTRIBUTE_SOFTWARE, SOFTWARE), (0x7777, b"abc")];
    assert_eq!(parse_binding_request(&message(BINDING_REQUEST, &attributes, true), true), Ok(TRANSACTION));
}

#[test]
fn answers_have_the_bytes_of_the_specification() {
    let v4 = binding_response(&TRANSACTION, "192.0.2.1:32853".parse().unwrap());
    let mut want = vec![0x01, 0x01, 0, 0x0c, 0x21, 0x12, 0xa4, 0x42];
    want.extend(TRANSACTION);
    want.extend([0, 0x20, 0, 8, 0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
    assert_eq!(v4.as_ref(), want);
    let mapped = binding_response(&TRANSACTION, "[::ffff:192.0.2.1]:32853".parse().unwrap());
    assert_eq!(mapped, v4);
    let v6 = binding_response(&TRANSACTION, "[2001:db8::1]:1".parse().unwrap());
    assert_eq!(v6.as_ref().len(), 44);
    assert_eq!(v6.as_ref()[20..26], [0, 0x20, 0, 0x14, 0, 2]);
}

#[test]
fn the_xored_address_wins_over_the_plain_one_and_mapped_ones_are_unmapped() {
    let plain = [0, 1, 0x12, 0x34, 198, 51, 100, 9];
    let real = binding_response(&TRANSACTION, "192.0.2.1:80".parse().unwrap());
    let xored = &real.as_ref()[24..];
    for kind in [ATTRIBUTE_XOR_MAPPED_ADDRESS, ATTRIBUTE_XOR_MAPPED_ADDRESS_ALT] {
        let both = message(BINDING_SUCCESS, &[(ATTRIBUTE_MAPPED_ADDRESS, &plain), (kind, xored)], false);
        assert_eq!(parse_binding_response(&both), Ok((TRANSACTION, "192.0.2.1:80".parse().unwrap())));
    }
    let only_plain = message(BINDING_SUCCESS, &[(ATTRIBUTE_MAPPED_ADDRESS, &plain)], false);
    assert_eq!(parse_binding_response(&only_plain), Ok((TRANSACTION, "198.51.100.9:4660".parse().unwrap())));
    // As upstream answers IPv4 clients on a dual-stack socket.
    let mut mapped = vec![0, 2, 0, 80];
    mapped.extend("::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets());
    let mapped = message(BINDING_SUCCESS, &[(ATTRIBUTE_MAPPED_ADDRESS, &mapped)], false);
    assert_eq!(parse_binding_response(&mapped), Ok((TRANSACTION, "192.0.2.1:80".parse().unwrap())));
    let none = message(BINDING_SUCCESS, &[(ATTRIBUTE_MAPPED_ADDRESS, &[0, 3, 0, 0])], false);
    assert_eq!(parse_binding_response(&none), Err(StunError::NoAddress));
    assert_eq!(parse_binding_response(&binding_request(&TRANSACTION)), Err(StunError::Type(1)));
}

proptest! {
    #[test]
    fn an_answer_is_read_back_as_it_was_made(transaction: TransactionId, from in socket_addr()) {
        let response = binding_response(&transaction, from);
        let want_len = if from.is_ipv4() { 32 } else { 44 };
        prop_assert_eq!(response.as_ref().len(), want_len);
        prop_assert_eq!(parse_binding_response(response.as_ref()), Ok((transaction, from)));
    }

    #[test]
    fn no_changed_bit_of_a_request_passes(transaction: TransactionId, at in 0..REQUEST_LEN, bit in 0_u8..8) {
        let mut request = binding_request(&transaction);
        request[at] ^= 1_u8 << bit;
        prop_assert!(parse_binding_request(&request, true).is_err());
    }
}
