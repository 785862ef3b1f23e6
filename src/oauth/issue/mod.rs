//! Issues tokens: claims are determined inside the transaction, signatures are made after the commit.

mod access_token;
pub mod id_token;
mod token_issuer;

pub use token_issuer::{
    PendingTokens, RefreshLifetimes, TokenGrant, TokenIssuer, TokenLifetimes, TokenResponse,
};
