//! A certificate for the stories' issuer, and clients that trust it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// A self-signed certificate with its key, in two files.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub pem: String,
}

impl Pair {
    /// Makes one in `folder` that ends at this second, or a long time from now.
    pub fn new(folder: &Path, name: &str, ends: Option<i64>) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let names = ["op.example", "localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = match ends {
            Some(second) => {
                actix_web::cookie::time::OffsetDateTime::from_unix_timestamp(second).unwrap()
            }
            None => rcgen::date_time_ymd(2090, 1, 1),
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let pair = Self {
            certificate: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
            pem,
        };
        std::fs::write(&pair.certificate, &pair.pem).unwrap();
        write_private(&pair.key, &key.serialize_pem());
        pair
    }

    /// Puts this pair where another one is, as a renewal does.
    pub fn replaces(&self, other: &Pair) {
        let key = std::fs::read_to_string(&self.key).unwrap();
        write_private(&other.key, &key);
        std::fs::write(&other.certificate, &self.pem).unwrap();
    }

    /// A TLS client that trusts this certificate alone.
    pub fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

/// Writes a file that its owner alone can read.
pub fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// The certificate of all servers that speak TLS.
pub fn ours() -> &'static Pair {
    static OURS: OnceLock<Pair> = OnceLock::new();
    OURS.get_or_init(|| Pair::new(super::server::scratch(), "tls", None))
}

/// Makes a server speak TLS itself.
pub fn switch_on(config: &mut portcullis::config::Config) {
    let pair = ours();
    config.listen.tls.certificate = Some(pair.certificate.clone());
    config.listen.tls.key = Some(pair.key.clone());
}
