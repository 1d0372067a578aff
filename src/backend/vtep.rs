//! The backend-data annotation of the VXLAN backend: `{"VNI":1,"VtepMAC":"d2:8a:5c:11:22:33"}`.
//!
//! Foreign programs put Nodes into clusters to receive traffic as a VTEP, and write `VtepMAC` alone; old flannels do too.

use encap::{MacAddr, MacError, Vni};
use serde_json::{Map, Value};

use super::answer::PeerDataError;

/// Longest value that is read. Ours are under 200 bytes; Kubernetes allows 256 KiB.
const MAX_BYTES: usize = 4096;

/// What a node says of its VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VtepData {
    /// `VNI`; old flannels do not write it. It may be any number: one that is no valid VNI is not ours either.
    pub vni: Option<u64>,
    /// `VtepMAC`: the device's address. Unicast.
    pub mac: MacAddr,
}

impl VtepData {
    /// Reads an annotation's value. Keys match in any case and unknown ones pass, as in Go. `None` for an absent or
    /// empty value and for `null`, which is what backends without data write.
    ///
    /// # Errors
    ///
    /// Too long, not JSON of this form, or an address that no device can have.
    pub fn parse(value: Option<&str>) -> Result<Option<Self>, PeerDataError> {
        let Some(text) = value.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
        let error = |reason: String| PeerDataError::Unreadable { value: text.to_owned(), reason };
        if text.len() > MAX_BYTES {
            return Err(error(format!("{} bytes are too many, at most {MAX_BYTES} are read", text.len())));
        }
        match serde_json::from_str(text).map_err(|e| error(e.to_string()))? {
            Value::Null => Ok(None),
            Value::Object(members) => Self::from_members(&members).map(Some).map_err(error),
            _ => Err(error("not an object".to_owned())),
        }
    }

    /// The value that flannel writes, byte for byte.
    pub fn render(vni: Vni, mac: MacAddr) -> String {
        format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"}}"#)
    }

    fn from_members(members: &Map<String, Value>) -> Result<Self, String> {
        let mut vni = None;
        let mut mac = None;
        for (key, value) in members.iter().filter(|(_, value)| !value.is_null()) {
            if key.eq_ignore_ascii_case("VNI") {
                vni = Some(value.as_u64().ok_or("VNI is not a whole number")?);
            } else if key.eq_ignore_ascii_case("VtepMAC") {
                mac = Some(value.as_str().ok_or("VtepMAC is not a text")?);
            }
        }
        let mac: MacAddr =
            mac.ok_or("VtepMAC is missing")?.trim().parse().map_err(|e: MacError| format!("VtepMAC {e}"))?;
        if mac.is_unicast() {
            Ok(Self { vni, mac })
        } else {
            Err(format!("VtepMAC {mac} is not the address of one device"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([0xae, 0x31, 0x5b, 0xa2, 0x02, 0x62]);

    /// What a real flannel wrote.
    const GOLDEN: &str = r#"{"VNI":1,"VtepMAC":"ae:31:5b:a2:02:62"}"#;

    #[test]
    fn flannels_bytes_both_ways() {
        assert_eq!(VtepData::render(Vni::FLANNEL, MAC), GOLDEN);
        assert_eq!(VtepData::parse(Some(GOLDEN)), Ok(Some(VtepData { vni: Some(1), mac: MAC })));
    }

    #[test]
    fn what_others_write_is_read() {
        for (text, vni) in [
            (r#"{"VtepMAC":"ae:31:5b:a2:02:62"}"#, None),
            (r#" {"vtepmac":"AE-31-5B-A2-02-62","vni":7,"Port":8472} "#, Some(7)),
            (r#"{"VNI":null,"VtepMAC":"ae31.5ba2.0262"}"#, None),
            (r#"{"VNI":4294967296,"VtepMAC":"ae:31:5b:a2:02:62"}"#, Some(1 << 32)),
        ] {
            assert_eq!(VtepData::parse(Some(text)), Ok(Some(VtepData { vni, mac: MAC })), "{text}");
        }
        for none in [None, Some(""), Some(" null\n")] {
            assert_eq!(VtepData::parse(none), Ok(None), "{none:?}");
        }
    }

    #[test]
    fn garbage_and_addresses_of_no_device_are_refused() {
        for (bad, want) in [
            ("{}", "VtepMAC is missing"),
            (r#"{"VNI":1}"#, "VtepMAC is missing"),
            (r#"{"VtepMAC":null}"#, "VtepMAC is missing"),
            (r#"{"VtepMAC":1}"#, "not a text"),
            (r#"{"VtepMAC":"here"}"#, "not a MAC address"),
            (r#"{"VtepMAC":"00:00:00:00:00:00"}"#, "not the address of one device"),
            (r#"{"VtepMAC":"01:00:5e:00:00:01"}"#, "not the address of one device"),
            (r#"{"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#, "not the address of one device"),
            (r#"{"VtepMAC":"02:00:5e:10:00:00:00:01"}"#, "not a MAC address"),
            (r#"{"VNI":"1","VtepMAC":"ae:31:5b:a2:02:62"}"#, "VNI is not a whole number"),
            (r#"{"VNI":-1,"VtepMAC":"ae:31:5b:a2:02:62"}"#, "VNI is not a whole number"),
            ("[]", "not an object"),
            ("garbage", "cannot be read"),
            (&"[".repeat(4000), "recursion limit"),
            (&"x".repeat(MAX_BYTES + 1), "too many"),
        ] {
            let error = VtepData::parse(Some(bad)).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("remove the annotation"), "{bad}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(vni in 1u32..1 << 24, mac: [u8; 6]) {
            let mac = MacAddr([mac[0] & 0xfe | 2, mac[1], mac[2], mac[3], mac[4], mac[5]]);
            let text = VtepData::render(Vni::new(vni).unwrap(), mac);
            proptest::prop_assert_eq!(VtepData::parse(Some(&text)), Ok(Some(VtepData { vni: Some(vni.into()), mac })));
        }

        #[test]
        fn no_value_panics(text in "\\PC{0,40}|\\{\"(VNI|VtepMAC)\":(\"\\PC{0,18}\"|[0-9]{1,12}|null)\\}") {
            let _ = VtepData::parse(Some(&text)).map_err(|e| e.to_string());
        }
    }
}
