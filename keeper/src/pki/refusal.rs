//! Failed handshakes in words: which certificate, why, and what to do.

use super::verify::WrongIdentity;
use model::Trouble;
use rustls::{AlertDescription, CertificateError, Error};

/// Why a TLS handshake with `whom` (for example `node 2 at n2:7432`) failed.
pub fn handshake_trouble(whom: &str, error: &std::io::Error) -> Trouble {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return Trouble::unreachable(
            format!("{whom} broke the connection off during the handshake: {error}"),
            "check that a keeper of this cluster runs there and that no firewall is in between",
        );
    };
    tls_trouble(whom, tls)
}

pub(crate) fn tls_trouble(whom: &str, error: &Error) -> Trouble {
    match error {
        Error::InvalidCertificate(why) => {
            let (reason, hint) = certificate_reason(why);
            Trouble::certificate_refused(format!("the certificate of {whom} was refused: {reason}"), hint)
        }
        Error::NoCertificatesPresented => Trouble::certificate_refused(
            format!("{whom} showed no certificate"),
            "check that a keeper of this cluster runs there",
        ),
        Error::AlertReceived(alert) => match alert_reason(*alert) {
            Some((reason, hint)) => {
                Trouble::certificate_refused(format!("{whom} refused the certificate of this node: {reason}"), hint)
            }
            None => broken(whom, error),
        },
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => Trouble::unreachable(
            format!("{whom} does not speak TLS as a keeper does"),
            "check the address: another program may listen there",
        )
        .because(error),
        _ => broken(whom, error),
    }
}

fn broken(whom: &str, error: &Error) -> Trouble {
    Trouble::unreachable(
        format!("the TLS handshake with {whom} failed"),
        "check that both keepers run this version of stemma",
    )
    .because(error)
}

const FOREIGN: &str = "check the address; if the node belongs here, join it anew with a token of this cluster";
const CLOCK: &str = "compare the clocks of both nodes (`date -u`)";
const RENEW: &str = "compare the clocks of both nodes; a keeper renews its certificate by itself while it reaches the \
                     cluster; after too long an absence join the node anew";

fn certificate_reason(error: &CertificateError) -> (String, &'static str) {
    match error {
        CertificateError::Expired => ("it has expired".into(), RENEW),
        CertificateError::ExpiredContext { time, not_after } => {
            let ago = time.as_secs().saturating_sub(not_after.as_secs());
            (format!("it expired {} ago", span(ago)), RENEW)
        }
        CertificateError::NotValidYet => ("it is not valid yet".into(), CLOCK),
        CertificateError::NotValidYetContext { time, not_before } => {
            let ahead = not_before.as_secs().saturating_sub(time.as_secs());
            (format!("it becomes valid only in {}", span(ahead)), CLOCK)
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            ("it is not signed by a CA that this node trusts".into(), FOREIGN)
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            ("it was not made for this purpose".into(), FOREIGN)
        }
        CertificateError::Other(other) => match other.0.downcast_ref::<WrongIdentity>() {
            Some(WrongIdentity::NotPinned { .. }) => (
                other.0.to_string(),
                "make a new token with `stemma token create`; if this one is new, the address leads elsewhere",
            ),
            Some(WrongIdentity::NoNode(_) | WrongIdentity::Cluster { .. } | WrongIdentity::Node { .. }) | None => {
                (other.0.to_string(), FOREIGN)
            }
        },
        other => (format!("{other:?}"), FOREIGN),
    }
}

fn alert_reason(alert: AlertDescription) -> Option<(&'static str, &'static str)> {
    match alert {
        AlertDescription::CertificateExpired => Some(("it has expired, by the clock there", RENEW)),
        AlertDescription::UnknownCA => Some(("it is not signed by a CA trusted there", FOREIGN)),
        AlertDescription::CertificateRevoked => Some(("it was revoked", FOREIGN)),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRequired
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError => Some(("it does not fit", FOREIGN)),
        _ => None,
    }
}

/// A length of time in its two largest units.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}
