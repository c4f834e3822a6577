//! CRC-32 (ISO-HDLC, as in Ethernet and zip), which STUN's FINGERPRINT is made of.

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < table.len() {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
}

/// Value of a FINGERPRINT attribute that follows `bytes`.
pub(super) fn fingerprint(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(!0, |crc: u32, byte| TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8));
    !crc ^ 0x5354_554e
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_crc_32_comes_out() {
        assert_eq!(fingerprint(b"123456789") ^ 0x5354_554e, 0xcbf4_3926);
    }
}
