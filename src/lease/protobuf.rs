//! Nodes and Pods in Kubernetes' protobuf encoding, reduced to the parts that are decoded.
//!
//! Whatever has no field here (a Node's images, managed fields and conditions' texts, a Pod's containers) is skipped by its
//! length and not looked at, which is why a heartbeat of a Node of 15 KB costs little more than its way here. Numbers of
//! fields are those of `k8s.io/api/core/v1/generated.proto` and `k8s.io/apimachinery/pkg/apis/meta/v1/generated.proto`,
//! which never change. There a text that is absent and an empty one look alike, and so they do here.

use std::collections::HashMap;

use prost::{DecodeError, Message};

use super::{NodeObject, PodObject};

/// An object that can be read from Kubernetes' protobuf encoding.
pub trait FromProtobuf: Sized {
    /// Reads the message of the object itself, without the envelope around it.
    ///
    /// # Errors
    /// It is no such message.
    fn from_protobuf(encoded: &[u8]) -> Result<Self, DecodeError>;
}

impl FromProtobuf for NodeObject {
    fn from_protobuf(encoded: &[u8]) -> Result<Self, DecodeError> {
        Node::decode(encoded).map(Self::from)
    }
}

impl FromProtobuf for PodObject {
    fn from_protobuf(encoded: &[u8]) -> Result<Self, DecodeError> {
        Pod::decode(encoded).map(Self::from)
    }
}

/// `ObjectMeta`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
    #[prost(string, tag = "5")]
    pub(super) uid: String,
    #[prost(string, tag = "6")]
    pub(super) resource_version: String,
    #[prost(message, optional, tag = "8")]
    pub(super) creation_timestamp: Option<Time>,
    #[prost(message, optional, tag = "9")]
    pub(super) deletion_timestamp: Option<Time>,
    #[prost(map = "string, string", tag = "12")]
    pub(super) annotations: HashMap<String, String>,
}

/// `Time`; Kubernetes stores whole seconds.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
}

impl Time {
    /// As JSON has it; `None` for one that was never set.
    pub(super) fn text(self) -> Option<String> {
        let time = jiff::Timestamp::from_second(self.seconds).ok().filter(|_| self.seconds != 0);
        time.map(|time| time.to_string())
    }
}

/// `Node`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Node {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    pub(super) spec: Option<NodeSpec>,
    #[prost(message, optional, tag = "3")]
    pub(super) status: Option<NodeStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeSpec {
    #[prost(string, tag = "1")]
    pub(super) pod_cidr: String,
    #[prost(string, repeated, tag = "7")]
    pub(super) pod_cidrs: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeStatus {
    #[prost(message, repeated, tag = "4")]
    pub(super) conditions: Vec<NodeCondition>,
    #[prost(message, repeated, tag = "5")]
    pub(super) addresses: Vec<NodeAddress>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeCondition {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(string, tag = "2")]
    pub(super) status: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeAddress {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(string, tag = "2")]
    pub(super) address: String,
}

/// `Pod`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Pod {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    pub(super) spec: Option<PodSpec>,
    #[prost(message, optional, tag = "3")]
    pub(super) status: Option<PodStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSpec {
    #[prost(string, tag = "10")]
    pub(super) node_name: String,
    #[prost(bool, tag = "11")]
    pub(super) host_network: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodStatus {
    #[prost(string, tag = "1")]
    pub(super) phase: String,
    #[prost(message, repeated, tag = "12")]
    pub(super) pod_ips: Vec<PodIp>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodIp {
    #[prost(string, tag = "1")]
    pub(super) ip: String,
}

/// `None` for an empty text.
pub(super) fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AnnotationPrefix;

    /// A field as protobuf writes it: number, then length, then content. All lengths here are below 128.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }

    fn message(fields: &[(u8, &[u8])]) -> Vec<u8> {
        fields.iter().flat_map(|(number, content)| field(*number, content)).collect()
    }

    /// Written without the library that reads it, with fields among them that are not read.
    #[test]
    fn a_node_is_what_its_json_says() {
        // 1,795,273,200 s, 2026-11-21T15:00:00Z, as a varint.
        let created = [&[0x08][..], &[0xf0, 0xe3, 0x86, 0xd8, 0x06], &[0x10, 0x00]].concat();
        let annotation = message(&[(1, b"flannel.alpha.coreos.com/public-ip"), (2, b"192.168.77.1")]);
        let metadata = [
            message(&[(1, b"n1"), (2, b""), (5, b"u"), (6, b"7"), (8, &created), (11, b"")]),
            message(&[(12, &annotation)]),
            vec![17 << 3 & 0x7f | 0x80 | 2, 1, 3, b'x', b'y', b'z'],
        ]
        .concat();
        let spec = message(&[(1, b"10.244.1.0/24"), (3, b"cloud://x"), (7, b"10.244.1.0/24")]);
        let address = message(&[(1, b"InternalIP"), (2, b"192.168.77.1")]);
        let condition = message(&[(1, b"NetworkUnavailable"), (2, b"False"), (5, b"reason")]);
        let status = message(&[(4, &condition), (5, &address), (8, b"image")]);
        // The metadata are longer than 127 bytes.
        let length = [metadata.len() as u8 | 0x80, (metadata.len() >> 7) as u8];
        let node = [&[0x0a][..], &length, &metadata, &field(2, &spec), &field(3, &status)].concat();
        let json = r#"{"metadata":{"name":"n1","uid":"u","resourceVersion":"7","creationTimestamp":"2026-11-21T15:00:00Z",
              "annotations":{"flannel.alpha.coreos.com/public-ip":"192.168.77.1"}},
            "spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24"]},
            "status":{"addresses":[{"type":"InternalIP","address":"192.168.77.1"}],
              "conditions":[{"type":"NetworkUnavailable","status":"False"}]}}"#;
        let facts = |object: NodeObject| {
            assert_eq!((object.name(), object.version()), ("n1", Some("7")));
            object.facts(&AnnotationPrefix::default()).unwrap()
        };
        let read = facts(NodeObject::from_protobuf(&node).unwrap());
        assert_eq!(read, facts(serde_json::from_str(json).unwrap()));
        assert!(read.network_available && read.annotations.public_ip.is_some());
    }

    #[test]
    fn a_pod_is_what_its_json_says() {
        let time = [0x08, 0xf0, 0xe3, 0x86, 0xd8, 0x06];
        let metadata = message(&[(1, b"a"), (3, b"default"), (6, b"9"), (8, &time), (9, &time)]);
        let spec = [message(&[(2, b"container"), (10, b"n1")]), vec![11 << 3, 0]].concat();
        let status = message(&[(1, b"Running"), (12, &field(1, b"10.244.9.9"))]);
        let pod = PodObject::from_protobuf(&message(&[(1, &metadata), (2, &spec), (3, &status)])).unwrap();
        let json = r#"{"metadata":{"name":"a","namespace":"default","creationTimestamp":"2026-11-21T15:00:00Z",
              "deletionTimestamp":"2026-11-21T15:00:00Z"},
            "spec":{"nodeName":"n1","hostNetwork":false},"status":{"phase":"Running","podIPs":[{"ip":"10.244.9.9"}]}}"#;
        assert_eq!(pod.version(), Some("9"));
        assert_eq!(pod.facts(), serde_json::from_str::<PodObject>(json).unwrap().facts());
    }

    #[test]
    fn what_is_cut_short_or_of_another_kind_is_an_error() {
        let node = field(1, &field(1, b"n1"));
        for end in 1..node.len() {
            assert!(NodeObject::from_protobuf(&node[..end]).is_err());
        }
        // A number where a text belongs.
        assert!(NodeObject::from_protobuf(&field(1, &[1 << 3, 5])).is_err());
        assert_eq!(NodeObject::from_protobuf(&[]).unwrap().name(), "");
    }
}
