//! The classification of TLS failures, with descriptions for the log.

use std::{error::Error, fmt, io};

use rustls::{AlertDescription, CertificateError};

/// The cause of a failed handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    UnknownAuthority,
    Expired,
    NotYetValid,
    WrongName,
    /// Any other fault of the peer's certificate.
    Certificate,
    /// The peer requires a certificate, or rejects the one presented.
    Refused,
    /// The peer does not speak TLS.
    NotTls,
    /// No common version, cipher or protocol, or a faulty peer.
    Handshake,
}

impl Failure {
    /// Classifies an error by itself and its sources. Returns `None` if it is not a TLS failure.
    pub fn from_error(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(Self::from(error));
        }
        // The source of an I/O error is the source of the wrapped error, not the wrapped error itself.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match wrapped {
            Some(wrapped) => Self::from_error(wrapped),
            None => error.source().and_then(Self::from_error),
        }
    }

    /// Classifies the debug text of an error, which is all that fred keeps.
    pub fn from_text(text: &str) -> Option<Self> {
        // Variants of `rustls::Error`.
        let variants = [
            ("UnknownIssuer", Self::UnknownAuthority),
            ("BadSignature", Self::UnknownAuthority),
            ("InvalidCertificate(Expired", Self::Expired),
            ("NotValidYet", Self::NotYetValid),
            ("NotValidForName", Self::WrongName),
            ("InvalidCertificate(", Self::Certificate),
            ("InvalidMessage(", Self::NotTls),
            ("HandshakeFailure", Self::Handshake),
            ("ProtocolVersion", Self::Handshake),
            ("NoApplicationProtocol", Self::Handshake),
            ("AlertReceived(", Self::Refused),
            ("PeerIncompatible(", Self::Handshake),
            ("PeerMisbehaved(", Self::Handshake),
            ("InappropriateMessage", Self::Handshake),
            ("InappropriateHandshakeMessage", Self::Handshake),
        ];
        variants.into_iter().find(|(name, _)| text.contains(name)).map(|(_, failure)| failure)
    }

    /// Returns the description of the failure; "it" is the peer.
    pub const fn description(self) -> &'static str {
        match self {
            Self::UnknownAuthority => "its certificate is not signed by an authority that is trusted here",
            Self::Expired => "its certificate has expired",
            Self::NotYetValid => "its certificate is not valid yet",
            Self::WrongName => "its certificate is for another name",
            Self::Certificate => "its certificate cannot be accepted",
            Self::Refused => "it refuses the certificate of this process, or its absence",
            Self::NotTls => "it does not speak TLS",
            Self::Handshake => "the TLS handshake failed",
        }
    }

    /// Returns whether the failure is permanent: it lasts until the settings or a certificate change.
    pub fn is_permanent(self) -> bool {
        !matches!(self, Self::Handshake)
    }
}

impl From<&rustls::Error> for Failure {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the enumerations of rustls may grow")]
    fn from(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(certificate) => match certificate {
                // BadSignature: an authority of the same name and with another key has signed it.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownAuthority,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::WrongName
                }
                _ => Self::Certificate,
            },
            rustls::Error::AlertReceived(
                AlertDescription::HandshakeFailure
                | AlertDescription::ProtocolVersion
                | AlertDescription::NoApplicationProtocol,
            ) => Self::Handshake,
            rustls::Error::AlertReceived(_) | rustls::Error::NoCertificatesPresented => Self::Refused,
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            _ => Self::Handshake,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}

#[cfg(test)]
mod tests {
    use rustls::InvalidMessage;

    use super::*;

    #[test]
    fn an_error_and_its_debug_text_have_the_same_class() {
        for (error, failure) in [
            (CertificateError::UnknownIssuer.into(), Failure::UnknownAuthority),
            (CertificateError::BadSignature.into(), Failure::UnknownAuthority),
            (CertificateError::Expired.into(), Failure::Expired),
            (CertificateError::NotValidYet.into(), Failure::NotYetValid),
            (CertificateError::NotValidForName.into(), Failure::WrongName),
            (CertificateError::Revoked.into(), Failure::Certificate),
            (rustls::Error::AlertReceived(AlertDescription::CertificateRequired), Failure::Refused),
            (rustls::Error::AlertReceived(AlertDescription::UnknownCA), Failure::Refused),
            (rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), Failure::Handshake),
            (rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType), Failure::NotTls),
        ] {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            assert_eq!(Failure::from_text(&format!("{error:?}")), Some(failure), "{error:?}");
            let wrapped = sqlx::Error::Io(error);
            assert_eq!(Failure::from_error(&wrapped), Some(failure), "{wrapped:?}");
        }
        let other = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(Failure::from_text(&format!("{other:?}")), None);
        assert_eq!(Failure::from_error(&other), None);
    }
}
