//! Authorities, and the certificates that they sign.

use std::{fs, path::PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// A folder that all users may read; gone when dropped.
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
        // PostgreSQL's data in it is another test's to remove, where there is any.
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

    /// The file with its own certificate.
    pub fn path(&self) -> String {
        self.file("ca")
    }

    /// A certificate for `host`.
    pub fn signs(&self, host: &str) -> Certificate {
        self.sign(host, host, 2099)
    }

    /// One that was for `host` until years ago.
    pub fn signed_long_ago(&self, host: &str) -> Certificate {
        self.sign(host, "expired", 2020)
    }

    fn sign(&self, host: &str, file: &str, until: i32) -> Certificate {
        let mut params = CertificateParams::new([host.to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, host);
        params.not_before = date_time_ymd(2010, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let signed = Certificate { chain: self.file(file), key: self.file(&format!("{file}-key")) };
        fs::write(&signed.chain, certificate.pem()).expect("written");
        fs::write(&signed.key, key.serialize_pem()).expect("written");
        signed
    }

    fn file(&self, what: &str) -> String {
        self.folder.join(format!("{}-{what}.pem", self.name)).to_str().expect("text").to_owned()
    }
}
