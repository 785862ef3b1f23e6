//! TLS (RFC 8446; RFC 5246 with the restrictions of RFC 9325) by rustls and aws-lc-rs. The certificate is reloaded when
//! its files change. If the new one is unusable, an error is logged and the old one remains in use.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use actix_web::web::Data;
use arc_swap::ArcSwap;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, Ticketer, cipher_suite as suite, kx_group as group};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedCipherSuite};
use tokio::sync::Notify;
use x509_cert::Certificate as X509;
use x509_cert::der::Decode;
use x509_cert::time::Time;

use crate::app::App;
use crate::config::limits::{CERTIFICATE_ALERT, CERTIFICATE_LOOK};
use crate::config::read_secret_file;
use crate::secret::sha256;
use crate::time::{Clock, Timestamp};

/// Only suites with forward secrecy and authenticated encryption (RFC 9325 §4.2).
const SUITES: [SupportedCipherSuite; 9] = [
    suite::TLS13_AES_256_GCM_SHA384,
    suite::TLS13_AES_128_GCM_SHA256,
    suite::TLS13_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// Why TLS cannot be configured: one sentence with the path of the file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// The period in which a certificate is valid (RFC 5280 §4.1.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// `notBefore`.
    pub from: Timestamp,
    /// `notAfter`.
    pub until: Timestamp,
}

impl Validity {
    /// Returns the period of a certificate (DER).
    pub fn of(leaf: &[u8]) -> Option<Self> {
        let certificate = X509::from_der(leaf).ok()?;
        let validity = certificate.tbs_certificate.validity;
        let time = |time: Time| Timestamp::from_secs(time.to_unix_duration().as_secs());
        Some(Self {
            from: time(validity.not_before),
            until: time(validity.not_after),
        })
    }

    /// Returns the end of the period that excludes `now`, as in the certificate.
    fn excluded_by(&self, now: Timestamp) -> Option<&'static str> {
        match now {
            _ if now < self.from => Some("not_before"),
            _ if now >= self.until => Some("not_after"),
            _ => None,
        }
    }
}

/// The content of the certificate's files.
struct Loaded {
    key: Arc<CertifiedKey>,
    validity: Validity,
    fingerprint: [u8; 32],
}

/// The certificate of a listener, as its files currently contain it.
pub struct Certificate {
    files: (PathBuf, PathBuf),
    current: ArcSwap<Loaded>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().key))
    }
}

/// Returns the TLS configuration of a listener. Its certificate follows the files.
///
/// # Errors
/// [`TlsError`].
pub fn configure(files: (PathBuf, PathBuf), app: &Data<App>) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(provider());
    let current = ArcSwap::from_pointee(load(&files, &provider)?);
    let certificate = Arc::new(Certificate { files, current });
    report_validity(&certificate, &app.clock);
    actix_web::rt::spawn(follow(
        Arc::downgrade(&certificate),
        Arc::clone(&provider),
        app.clock.clone(),
        Arc::clone(&app.certificates),
    ));
    let failed = |error: rustls::Error| TlsError(format!("TLS cannot be configured: {error}"));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(failed)?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    // The server's order of suites applies, because a client may be configured to prefer a weaker one.
    config.ignore_client_order = true;
    // A ticket key is used for 6 h and deleted after 12 h.
    config.ticketer = Ticketer::new().map_err(failed)?;
    config.send_tls13_tickets = 2;
    // No early data, because it can be replayed (RFC 8470).
    config.max_early_data_size = 0;
    Ok(config)
}

fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: SUITES.to_vec(),
        kx_groups: vec![group::X25519MLKEM768, group::X25519, group::SECP256R1],
        ..aws_lc_rs::default_provider()
    }
}

fn load(files: &(PathBuf, PathBuf), provider: &CryptoProvider) -> Result<Loaded, TlsError> {
    let (chain_file, key_file) = files;
    let refuse = |path: &PathBuf, why: &dyn std::fmt::Display| {
        TlsError(format!("{}: {why}", path.display()))
    };
    let chain_text = std::fs::read(chain_file).map_err(|error| refuse(chain_file, &error))?;
    let key_text = read_secret_file(key_file).map_err(TlsError)?;
    let chain = CertificateDer::pem_slice_iter(&chain_text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| refuse(chain_file, &error))?;
    let leaf = chain
        .first()
        .ok_or_else(|| refuse(chain_file, &"contains no certificate"))?;
    let validity =
        Validity::of(leaf).ok_or_else(|| refuse(chain_file, &"contains no X.509 certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key_text.as_bytes())
        .map_err(|error| refuse(key_file, &error))?;
    let signing = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| refuse(key_file, &error))?;
    let key = CertifiedKey::new(chain, signing);
    key.keys_match()
        .map_err(|_| refuse(key_file, &"is not the key of the certificate"))?;
    Ok(Loaded {
        key: Arc::new(key),
        validity,
        fingerprint: fingerprint(&chain_text, key_text.as_bytes()),
    })
}

fn fingerprint(chain: &[u8], key: &[u8]) -> [u8; 32] {
    sha256(&[sha256(chain), sha256(key)].concat())
}

/// Returns when the certificate of these files is valid, and whether it is valid for `host`, if one is given.
///
/// # Errors
/// [`TlsError`].
pub fn inspect(
    files: &(PathBuf, PathBuf),
    host: Option<&str>,
) -> Result<(Validity, bool), TlsError> {
    let loaded = load(files, &provider())?;
    let names = |host: &str| {
        let leaf = loaded.key.end_entity_cert().ok()?;
        let leaf = ParsedCertificate::try_from(leaf).ok()?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare).ok()?;
        verify_server_name(&leaf, &name).ok()
    };
    let named = host.is_none_or(|host| names(host).is_some());
    Ok((loaded.validity, named))
}

/// Reloads the certificate when its files change, for as long as a listener uses it.
async fn follow(
    certificate: Weak<Certificate>,
    provider: Arc<CryptoProvider>,
    clock: Clock,
    reload: Arc<Notify>,
) {
    let mut interval = tokio::time::interval(CERTIFICATE_LOOK);
    // The files of a certificate that is not used, and when it becomes valid.
    let mut rejected: Option<(Option<[u8; 32]>, Option<Timestamp>)> = None;
    let mut checks = 0_u32;
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            // On request an error that was logged before is logged again.
            () = reload.notified() => rejected = None,
        }
        let Some(certificate) = certificate.upgrade() else {
            return;
        };
        checks = checks.wrapping_add(1);
        if checks.is_multiple_of(ALERT_EVERY) {
            report_validity(&certificate, &clock);
        }
        let (chain, key) = &certificate.files;
        let texts = (std::fs::read(chain), std::fs::read(key));
        let found = match &texts {
            (Ok(chain), Ok(key)) => Some(fingerprint(chain, key.trim_ascii())),
            _ => None,
        };
        if found == Some(certificate.current.load().fingerprint) {
            rejected = None;
            continue;
        }
        let now = clock.now();
        if rejected
            .is_some_and(|(files, from)| files == found && from.is_none_or(|from| now < from))
        {
            continue;
        }
        let (reason, error, valid_from) = match load(&certificate.files, &provider) {
            Ok(loaded) => match loaded.validity.excluded_by(now) {
                None => {
                    let expires_at = loaded.validity.until;
                    certificate.current.store(Arc::new(loaded));
                    rejected = None;
                    tracing::info!(event = "tls.reloaded", reason = "changed", %expires_at, certificate = %chain.display());
                    report_validity(&certificate, &clock);
                    continue;
                }
                Some(end) => {
                    let Validity { from, until } = loaded.validity;
                    let error = TlsError(format!(
                        "{}: is valid from {from} until {until}, which is not now",
                        chain.display()
                    ));
                    (end, error, Some(from).filter(|from| now < *from))
                }
            },
            Err(error) => ("unusable", error, None),
        };
        rejected = Some((found, valid_from));
        tracing::error!(event = "tls.reload_failed", reason, severity = "high", certificate = %chain.display(), %error);
    }
}

/// Checks between two alerts: one hour.
const ALERT_EVERY: u32 = 3_600 / CERTIFICATE_LOOK.as_secs() as u32;

/// Logs an alert if the certificate is not valid now, or expires soon.
fn report_validity(certificate: &Certificate, clock: &Clock) {
    let (validity, now) = (certificate.current.load().validity, clock.now());
    let Validity { from, until } = validity;
    let chain = certificate.files.0.display();
    if let Some(reason) = validity.excluded_by(now) {
        tracing::error!(event = "tls.not_valid", reason, severity = "high", certificate = %chain, valid_from = %from, expires_at = %until, "clients reject the certificate");
        return;
    }
    let left: Duration = until.since(now);
    if left < CERTIFICATE_ALERT {
        let days = left.as_secs() / 86_400;
        tracing::error!(event = "tls.expiring", reason = "not_after", severity = "high", certificate = %chain, expires_at = %until, days);
    }
}
