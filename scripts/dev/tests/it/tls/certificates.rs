//! Certificate authorities and the certificates that they issue.

use std::{fs, path::PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// A temporary folder that all users may read. It is removed on drop.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shoppee-tls-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The folder of a test with PostgreSQL has files of another user.
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub struct Authority {
    folder: PathBuf,
    name: &'static str,
    issuer: Issuer<'static, KeyPair>,
}

/// The paths of a chain and its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub chain: String,
    pub key: String,
}

impl Authority {
    pub fn new(folder: &Folder, name: &'static str) -> Self {
        let mut params = CertificateParams::new([]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key");
        let own = params.self_signed(&key).expect("a certificate");
        let authority = Self { folder: folder.0.clone(), name, issuer: Issuer::new(params, key) };
        fs::write(authority.path(), own.pem()).expect("written");
        authority
    }

    /// Returns the file of the authority's own certificate.
    pub fn path(&self) -> String {
        self.file("ca")
    }

    /// Issues a certificate for `host`.
    pub fn issue(&self, host: &str) -> Certificate {
        self.issue_until(host, host, 2099)
    }

    /// Issues a certificate for `host` that expired years ago.
    pub fn issue_expired(&self, host: &str) -> Certificate {
        self.issue_until(host, "expired", 2020)
    }

    fn issue_until(&self, host: &str, file: &str, year: i32) -> Certificate {
        let mut params = CertificateParams::new([host.to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, host);
        params.not_before = date_time_ymd(2010, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let issued = Certificate { chain: self.file(file), key: self.file(&format!("{file}-key")) };
        fs::write(&issued.chain, certificate.pem()).expect("written");
        fs::write(&issued.key, key.serialize_pem()).expect("written");
        issued
    }

    fn file(&self, suffix: &str) -> String {
        self.folder.join(format!("{}-{suffix}.pem", self.name)).to_str().expect("text").to_owned()
    }
}
