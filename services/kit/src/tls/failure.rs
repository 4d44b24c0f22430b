//! Failures of a TLS connection, in words for the log.

use std::{error::Error, fmt, io};

use rustls::{AlertDescription, CertificateError};

/// The meaning of a failed handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    UnknownAuthority,
    Expired,
    NotYetValid,
    WrongName,
    /// Anything else that is wrong with the certificate of the peer.
    Certificate,
    /// The peer wants a certificate, or another one.
    Refused,
    /// The peer answers, and not in TLS.
    NotTls,
    /// No version, cipher or protocol in common, or a broken peer.
    Handshake,
}

impl Failure {
    /// Finds the failure among an error and its causes; `None` where TLS has no part in it.
    pub fn find(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(Self::from(error));
        }
        // The source of an error of I/O is the source of what it wraps, and not what it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match wrapped {
            Some(wrapped) => Self::find(wrapped),
            None => error.source().and_then(Self::find),
        }
    }

    /// Finds the failure where nothing of the error is left but its debug text, as fred leaves it.
    pub fn find_in_text(text: &str) -> Option<Self> {
        // The names of the variants of rustls' error.
        let known = [
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
        known.into_iter().find(|(name, _)| text.contains(name)).map(|(_, failure)| failure)
    }

    /// The failure in a line about the peer.
    pub const fn words(self) -> &'static str {
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

    /// Reports whether trying again can help only after the settings or a certificate have changed.
    pub fn is_lasting(self) -> bool {
        !matches!(self, Self::Handshake)
    }
}

impl From<&rustls::Error> for Failure {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the enumerations of rustls may grow")]
    fn from(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(certificate) => match certificate {
                // One of the same name and another key signed it.
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
        f.write_str(self.words())
    }
}

#[cfg(test)]
mod tests {
    use rustls::InvalidMessage;

    use super::*;

    #[test]
    fn a_failure_is_found_in_an_error_and_in_its_text() {
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
            assert_eq!(Failure::find_in_text(&format!("{error:?}")), Some(failure), "{error:?}");
            let wrapped = sqlx::Error::Io(error);
            assert_eq!(Failure::find(&wrapped), Some(failure), "{wrapped:?}");
        }
        let other = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(Failure::find_in_text(&format!("{other:?}")), None);
        assert_eq!(Failure::find(&other), None);
    }
}
