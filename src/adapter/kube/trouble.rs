//! Why the API server cannot be asked, told apart by what an operator would do about it.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, ErrorKind};
use std::time::Duration;

use kube::core::Status;
use rustls::{AlertDescription, CertificateError, Error as TlsError};

use super::tls;

/// Longest piece of somebody else's words that is shown.
const KEPT: usize = 300;

/// What to do when not our role but an admission policy is in the way.
const POLICY: &str = "adapt that policy: in loden.yml its variable `prefix` has to begin as --kube-annotation-prefix \
                      does, and the daemon has to log in by the token of its own pod";

/// What to do about a certificate whose kind of key or signature rustls does not know.
const KEYS: &str = "make the server's certificate, and its authority's, with a key of ECDSA P-256 or P-384, Ed25519, or RSA of \
                    2048 bits or more, signed with SHA-256 or better: keys of P-521 and signatures of SHA-1 are not known here";

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "`Cause::meaning` says what each is")]
pub enum Cause {
    Refused,
    Unreachable,
    Dns,
    Timeout,
    Closed,
    UnknownCa,
    Certificate,
    Tls,
    Unauthorized,
    Forbidden,
    NotFound,
    Expired,
    Overloaded,
    Unavailable,
    Server,
    BadAnswer,
    Idle,
    Stale,
    Disorder,
    TimeLimit,
    Other,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::Refused,
        Self::Unreachable,
        Self::Dns,
        Self::Timeout,
        Self::Closed,
        Self::UnknownCa,
        Self::Certificate,
        Self::Tls,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::Expired,
        Self::Overloaded,
        Self::Unavailable,
        Self::Server,
        Self::BadAnswer,
        Self::Idle,
        Self::Stale,
        Self::Disorder,
        Self::TimeLimit,
        Self::Other,
    ];

    /// Its label in metrics.
    pub const fn as_str(self) -> &'static str {
        self.texts().0
    }

    /// What happened, in words.
    pub const fn meaning(self) -> &'static str {
        self.texts().1
    }

    /// What to do about it.
    pub const fn remedy(self) -> &'static str {
        self.texts().2
    }

    const fn texts(self) -> (&'static str, &'static str, &'static str) {
        const WAIT: &str = "nothing needs to be done unless this stays";
        match self {
            Self::Refused => (
                "refused",
                "connection refused",
                "start the API server, or correct its address (--kube-api-url, the kubeconfig's server, KUBERNETES_SERVICE_HOST)",
            ),
            Self::Unreachable => (
                "unreachable",
                "no route to it",
                "check this machine's routes and firewall, and the address of the API server",
            ),
            Self::Dns => (
                "dns",
                "its name cannot be resolved",
                "check this machine's DNS, or give an IP address with --kube-api-url",
            ),
            Self::Timeout => (
                "timeout",
                "no answer in time",
                "check that it runs, is not overloaded, and that no firewall is in between",
            ),
            Self::Closed => ("closed", "the connection was closed", WAIT),
            Self::UnknownCa => (
                "unknown_ca",
                "its certificate was signed by an unknown authority",
                "put the cluster's CA certificate into the kubeconfig (certificate-authority-data), or in a pod into the service account's ca.crt",
            ),
            Self::Certificate => (
                "certificate",
                "its certificate is not valid",
                "give an address that is in the certificate (or tls-server-name in the kubeconfig), renew an expired one, or set this machine's clock",
            ),
            Self::Tls => (
                "tls",
                "no TLS connection can be made",
                "check that scheme and port of the address are the API server's",
            ),
            Self::Unauthorized => (
                "unauthorized",
                "401, it does not know us",
                "renew the token or client certificate (in a pod, of its service account)",
            ),
            Self::Forbidden => (
                "forbidden",
                "403, we may not do this",
                "bind our account to the rights of the ClusterRole in loden.yml",
            ),
            Self::NotFound => (
                "not_found",
                "404, there is no such object",
                "check NODE_NAME and that the address is an API server's",
            ),
            Self::Expired => (
                "expired",
                "410, it does not remember that far back",
                "nothing needs to be done: everything is read anew",
            ),
            Self::Overloaded => ("overloaded", "429, it is overloaded", WAIT),
            Self::Unavailable => {
                ("unavailable", "503, it is starting, stopping or not there behind its load balancer", WAIT)
            }
            Self::Server => ("server_error", "it answered with an error", "look into the API server's log"),
            Self::BadAnswer => (
                "bad_answer",
                "its answer is not understood",
                "check that the address is a Kubernetes API server's",
            ),
            Self::Idle => ("idle", "the watch has been silent for too long", WAIT),
            Self::Stale => (
                "stale",
                "its list is older than what it said before",
                "nothing needs to be done: it is read again before anything is taken from it; if this stays, look for a caching proxy in front of it",
            ),
            Self::Disorder => (
                "disorder",
                "its events are out of order",
                "nothing needs to be done: everything is read anew; if this stays, look for a proxy in front of it",
            ),
            Self::TimeLimit => ("time_limit", "the watch ended as agreed", "nothing needs to be done"),
            Self::Other => ("other", "it cannot be asked", "see the cause"),
        }
    }
}

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What kind of failure.
    pub cause: Cause,
    /// What the other side, or the library, said; cut to a length for people.
    pub detail: String,
    /// What to do about it.
    pub remedy: &'static str,
    /// The server asked to be left alone for this long.
    pub retry_after: Duration,
}

impl Trouble {
    pub(super) fn new(cause: Cause, detail: &str) -> Self {
        let detail = detail.chars().map(|c| if c.is_control() { ' ' } else { c }).take(KEPT).collect();
        Self { cause, detail, remedy: cause.remedy(), retry_after: Duration::ZERO }
    }

    /// What a status object says, as the answer to a request or within a watch.
    pub(super) fn status(status: &Status) -> Self {
        let cause = match status.code {
            401 => Cause::Unauthorized,
            403 => Cause::Forbidden,
            404 => Cause::NotFound,
            408 | 504 => Cause::Timeout,
            410 => Cause::Expired,
            429 => Cause::Overloaded,
            502 | 503 => Cause::Unavailable,
            _ => Cause::Server,
        };
        let named = matches!(status.code, 401 | 403 | 404 | 410 | 429);
        let detail =
            if named { status.message.clone() } else { format!("{}: {}", status.code, status.message) };
        let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        let mut trouble =
            Self { retry_after: Duration::from_secs(seconds.into()), ..Self::new(cause, &detail) };
        if detail.contains("ValidatingAdmissionPolicy") {
            trouble.remedy = POLICY;
        }
        trouble
    }

    pub(super) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::status(status),
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
                Self::new(Cause::BadAnswer, &error.to_string())
            }
            _ => {
                let (cause, detail) = chain(error);
                let retry_after =
                    overloaded(error).map_or(Duration::ZERO, |overloaded| overloaded.retry_after);
                let usual = Self::new(cause, &detail);
                let remedy = tls_error(error).and_then(tls_remedy).unwrap_or(usual.remedy);
                Self { retry_after, remedy, ..usual }
            }
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cause.meaning())?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        write!(f, "; {}", self.remedy)
    }
}

/// 429 with the time to wait, as the header of the answer names it.
#[derive(Debug, thiserror::Error)]
#[error("retry after {} s", retry_after.as_secs())]
pub(super) struct Overloaded {
    pub(super) retry_after: Duration,
}

/// Looks through the causes for the first that tells something, and returns the innermost words.
fn chain(error: &(dyn StdError + 'static)) -> (Cause, String) {
    let mut cause = Cause::Other;
    let mut words = error.to_string();
    let mut next = Some(error);
    while let Some(error) = next {
        words = error.to_string();
        // The resolver's failure is an io::Error of no kind of its own; only the client's words around it tell.
        let here = if words == "dns error" { Cause::Dns } else { kind(error) };
        if cause == Cause::Other {
            cause = here;
        }
        next = error.source();
    }
    (cause, words)
}

fn overloaded<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Overloaded> {
    error.downcast_ref().or_else(|| overloaded(error.source()?))
}

fn kind(error: &(dyn StdError + 'static)) -> Cause {
    if error.is::<Overloaded>() {
        return Cause::Overloaded;
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return io_kind(error);
    }
    if let Some(error) = error.downcast_ref::<TlsError>() {
        return tls_kind(error);
    }
    match error.downcast_ref::<hyper::Error>() {
        Some(error) if error.is_incomplete_message() || error.is_closed() => Cause::Closed,
        _ => Cause::Other,
    }
}

/// `io::Error::source` skips the error that it wraps, and TLS errors come wrapped twice.
fn io_kind(error: &io::Error) -> Cause {
    if let Some(inner) = error.get_ref() {
        if let Some(inner) = inner.downcast_ref::<io::Error>() {
            return io_kind(inner);
        }
        if let Some(inner) = inner.downcast_ref::<TlsError>() {
            return tls_kind(inner);
        }
    }
    match error.kind() {
        ErrorKind::ConnectionRefused => Cause::Refused,
        ErrorKind::TimedOut => Cause::Timeout,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => {
            Cause::Unreachable
        }
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::NotConnected
        | ErrorKind::UnexpectedEof => Cause::Closed,
        _ => Cause::Other,
    }
}

fn tls_kind(error: &TlsError) -> Cause {
    match error {
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            Cause::UnknownCa
        }
        TlsError::InvalidCertificate(_) => Cause::Certificate,
        _ => Cause::Tls,
    }
}

/// The TLS error among the causes of an error.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a TlsError> {
    let inside = |error: &'a (dyn StdError + 'static)| {
        let mut inner = error.downcast_ref::<io::Error>()?.get_ref()?;
        while let Some(next) = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            inner = next;
        }
        inner.downcast_ref::<TlsError>()
    };
    error.downcast_ref().or_else(|| inside(error)).or_else(|| tls_error(error.source()?))
}

/// What to do about a certificate that is refused, where the usual text would lead elsewhere. kubectl takes some of these.
fn tls_remedy(error: &TlsError) -> Option<&'static str> {
    use CertificateError as Why;
    if tls::is_authority(error) {
        return Some(
            "the server shows the certificate of a certificate authority as its own: make it a server certificate \
             (basicConstraints CA:FALSE) that the authority signs, or name exactly this certificate as certificate-authority",
        );
    }
    Some(match error {
        TlsError::InvalidCertificate(why) => match why {
            Why::Expired | Why::ExpiredContext { .. } => {
                "renew the server's certificate, or set this machine's clock"
            }
            Why::NotValidYet | Why::NotValidYetContext { .. } => "set this machine's clock, or the server's",
            Why::NotValidForName | Why::NotValidForNameContext { .. } => {
                "give an address that is in the certificate's subjectAltName (a common name alone does not count), or \
                 tls-server-name in the kubeconfig, or make a certificate with this address"
            }
            Why::UnsupportedSignatureAlgorithmContext { .. }
            | Why::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => KEYS,
            Why::InvalidPurpose | Why::InvalidPurposeContext { .. } => {
                "make a server certificate whose extendedKeyUsage has serverAuth"
            }
            Why::Other(other) if other.to_string().contains("UnsupportedCertVersion") => {
                "make a server certificate of X.509 version 3, with its names in subjectAltName"
            }
            _ => return None,
        },
        TlsError::PeerIncompatible(_) | TlsError::AlertReceived(AlertDescription::HandshakeFailure) => KEYS,
        TlsError::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate,
        ) => {
            "the server refuses our client certificate: renew it, signed by the authority that the server trusts"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(error: TlsError) -> kube::Error {
        kube::Error::Service(Box::new(io::Error::other(io::Error::other(error))))
    }

    #[test]
    fn each_failure_has_its_name() {
        let io = |kind: ErrorKind| kube::Error::Service(Box::new(io::Error::from(kind)));
        let status = |code: u16| {
            kube::Error::Api(Box::new(Status { code, message: "no".into(), ..Status::default() }))
        };
        let unknown = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        for (error, want) in [
            (io(ErrorKind::ConnectionRefused), Cause::Refused),
            (io(ErrorKind::HostUnreachable), Cause::Unreachable),
            (io(ErrorKind::ConnectionReset), Cause::Closed),
            (wrapped(unknown), Cause::UnknownCa),
            (wrapped(TlsError::InvalidCertificate(CertificateError::Expired)), Cause::Certificate),
            (wrapped(TlsError::HandshakeNotComplete), Cause::Tls),
            (status(401), Cause::Unauthorized),
            (status(403), Cause::Forbidden),
            (status(410), Cause::Expired),
            (status(500), Cause::Server),
            (status(503), Cause::Unavailable),
        ] {
            assert_eq!(Trouble::of(&error).cause, want, "{error:?}");
        }
    }

    #[test]
    fn a_server_says_how_long_to_wait() {
        let overloaded = Overloaded { retry_after: Duration::from_secs(7) };
        let trouble = Trouble::of(&kube::Error::Service(Box::new(overloaded)));
        assert_eq!((trouble.cause, trouble.retry_after), (Cause::Overloaded, Duration::from_secs(7)));
    }

    #[test]
    fn labels_are_distinct_and_every_text_has_a_remedy() {
        let labels: std::collections::BTreeSet<_> = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
        assert_eq!(labels.len(), Cause::ALL.len());
        assert!(Cause::ALL.iter().all(|cause| !cause.remedy().is_empty()));
    }

    #[test]
    fn what_a_server_says_cannot_forge_lines() {
        let trouble = Trouble::new(Cause::Server, &format!("a\nb\x1b[2J{}", "x".repeat(1000)));
        assert!(!trouble.to_string().contains(['\n', '\x1b']) && trouble.to_string().len() < 500);
    }
}
