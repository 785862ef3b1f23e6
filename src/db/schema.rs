//! The tables, as created by the migrations of both databases.

diesel::table! {
    clients (id) {
        id -> Text,
        name -> Text,
        kind -> Text,
        auth_method -> Text,
        redirect_uris -> Text,
        grant_types -> Text,
        scopes -> Text,
        resources -> Text,
        cors_origins -> Text,
        post_logout_redirect_uris -> Text,
        id_token_alg -> Text,
        consent -> Text,
        require_pkce -> Bool,
        allow_localhost_redirect -> Bool,
        client_uri -> Nullable<Text>,
        policy_uri -> Nullable<Text>,
        tos_uri -> Nullable<Text>,
        auth_epoch -> BigInt,
        disabled_at -> Nullable<BigInt>,
        created_at -> BigInt,
        serves -> Text,
        userinfo_alg -> Nullable<Text>,
        deleted_at -> Nullable<BigInt>,
        allow_networks -> Text,
        deny_networks -> Text,
        secret_either_way -> Bool,
        backchannel_logout_uri -> Nullable<Text>,
        backchannel_logout_session_required -> Bool,
        assertion_auth -> Bool,
        assertion_alg -> Nullable<Text>,
        assertion_audience -> Text,
        jwks -> Nullable<Text>,
    }
}

diesel::table! {
    used_assertions (client_id, jti) {
        client_id -> Text,
        jti -> Binary,
        expires_at -> BigInt,
    }
}

diesel::table! {
    logout_notifications (client_id, sid) {
        client_id -> Text,
        sid -> Text,
        user_id -> Text,
        created_at -> BigInt,
        attempts -> BigInt,
        next_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    client_secrets (id) {
        id -> Text,
        client_id -> Text,
        hash -> Binary,
        label -> Text,
        created_at -> BigInt,
        expires_at -> Nullable<BigInt>,
        last_used_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    resources (id) {
        id -> Text,
        audience -> Text,
        name -> Text,
        scopes -> Text,
        access_ttl -> Nullable<BigInt>,
        alg -> Text,
        max_age -> Nullable<BigInt>,
        created_at -> BigInt,
    }
}

diesel::table! {
    scopes (name) {
        name -> Text,
        description -> Text,
    }
}

diesel::table! {
    users (id) {
        id -> Text,
        username -> Text,
        name -> Nullable<Text>,
        email -> Nullable<Text>,
        email_verified -> Bool,
        claims -> Text,
        auth_epoch -> BigInt,
        disabled_at -> Nullable<BigInt>,
        created_at -> BigInt,
        updated_at -> BigInt,
    }
}

diesel::table! {
    passwords (user_id) {
        user_id -> Text,
        phc -> Text,
        set_at -> BigInt,
    }
}

diesel::table! {
    sessions (id_hash) {
        id_hash -> Binary,
        sid -> Text,
        user_id -> Text,
        user_epoch -> BigInt,
        auth_time -> BigInt,
        acr -> Text,
        amr -> Text,
        seen_at -> BigInt,
        expires_at -> BigInt,
        ended_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    authorizations (id) {
        id -> Text,
        client_id -> Nullable<Text>,
        params -> Text,
        browser -> Nullable<Binary>,
        user_id -> Nullable<Text>,
        sid -> Nullable<Text>,
        state -> Text,
        scope -> Nullable<Text>,
        created_at -> BigInt,
        expires_at -> BigInt,
        taken_at -> Nullable<BigInt>,
        network -> Nullable<Text>,
        login_sid -> Nullable<Text>,
    }
}

diesel::table! {
    consents (id) {
        id -> Text,
        user_id -> Text,
        client_id -> Text,
        scope -> Text,
        client_shape -> Binary,
        granted_at -> BigInt,
        expires_at -> BigInt,
        ended_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    grants (id) {
        id -> Text,
        client_id -> Text,
        user_id -> Text,
        sid -> Text,
        consent_id -> Nullable<Text>,
        offline -> Bool,
        scope -> Text,
        resources -> Text,
        cnf_jkt -> Nullable<Text>,
        auth_time -> BigInt,
        acr -> Text,
        amr -> Text,
        client_epoch -> BigInt,
        user_epoch -> BigInt,
        feed_epoch -> BigInt,
        generation -> BigInt,
        rotated_at -> BigInt,
        idle_until -> BigInt,
        expires_at -> BigInt,
        created_at -> BigInt,
        ended_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    codes (hash) {
        hash -> Binary,
        grant_id -> Text,
        client_id -> Text,
        redirect_uri -> Text,
        redirect_uri_sent -> Bool,
        challenge -> Nullable<Text>,
        nonce -> Nullable<Text>,
        expires_at -> BigInt,
        used_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    signing_keys (kid) {
        kid -> Text,
        issuer -> Text,
        #[sql_name = "use"]
        use_ -> Text,
        alg -> Text,
        generation -> BigInt,
        public_jwk -> Text,
        sealed -> Text,
        publish_at -> BigInt,
        activate_at -> BigInt,
        retire_at -> Nullable<BigInt>,
        remove_at -> Nullable<BigInt>,
        revoked_at -> Nullable<BigInt>,
        revoke_reason -> Nullable<Text>,
        created_at -> BigInt,
    }
}

diesel::table! {
    server_secrets (id) {
        id -> Text,
        generation -> BigInt,
        sealed -> Text,
        created_at -> BigInt,
    }
}

diesel::table! {
    revocations (id) {
        id -> Text,
        kind -> Text,
        value -> Text,
        floor -> BigInt,
        token_exp -> Nullable<BigInt>,
        reason -> Text,
        actor -> Text,
        created_at -> BigInt,
        epoch -> Nullable<BigInt>,
        seq -> Nullable<BigInt>,
        expires_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    feed_head (one) {
        one -> BigInt,
        epoch -> BigInt,
        seq -> BigInt,
        beat -> BigInt,
        keys_version -> BigInt,
        config_version -> BigInt,
        longest_life -> BigInt,
        longest_at -> BigInt,
        restored_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    served_issuer (id) {
        id -> BigInt,
        issuer -> Text,
        since -> BigInt,
    }
}

diesel::table! {
    downtimes (began) {
        began -> BigInt,
        ended -> BigInt,
    }
}

diesel::table! {
    feed_acks (client_id, instance) {
        client_id -> Text,
        instance -> Text,
        epoch -> BigInt,
        seq -> BigInt,
        kids -> Text,
        max_age -> Nullable<BigInt>,
        acked_at -> BigInt,
    }
}

diesel::table! {
    audit_events (id) {
        id -> Text,
        at -> BigInt,
        name -> Text,
        actor -> Text,
        target -> Text,
        reason -> Nullable<Text>,
        detail -> Text,
    }
}

diesel::table! {
    audit_seals (seq) {
        seq -> BigInt,
        event_id -> Text,
        mac -> Binary,
    }
}

diesel::table! {
    audit_waiting (event_id) {
        event_id -> Text,
    }
}

diesel::table! {
    throttles (key) {
        key -> Text,
        failures -> BigInt,
        in_a_row -> BigInt,
        attempts -> BigInt,
        window_ends -> BigInt,
        next_at -> BigInt,
        last_at -> BigInt,
        expires_at -> BigInt,
        user_id -> Nullable<Text>,
        in_progress -> BigInt,
        in_progress_until -> BigInt,
    }
}

diesel::table! {
    known_devices (id_hash, user_id) {
        id_hash -> Binary,
        user_id -> Text,
        expires_at -> BigInt,
    }
}

diesel::table! {
    user_roles (user_id, role) {
        user_id -> Text,
        role -> Text,
        granted_by -> Text,
        granted_at -> BigInt,
        expires_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    setup_links (hash) {
        hash -> Binary,
        browser -> Nullable<Binary>,
        expires_at -> BigInt,
        used_at -> Nullable<BigInt>,
    }
}

diesel::joinable!(client_secrets -> clients (client_id));
diesel::joinable!(passwords -> users (user_id));
diesel::joinable!(sessions -> users (user_id));
diesel::joinable!(known_devices -> users (user_id));
diesel::joinable!(feed_acks -> clients (client_id));
diesel::joinable!(grants -> users (user_id));
diesel::joinable!(grants -> clients (client_id));

diesel::joinable!(logout_notifications -> clients (client_id));
diesel::allow_tables_to_appear_in_same_query!(
    clients,
    client_secrets,
    resources,
    scopes,
    users,
    passwords,
    sessions,
    authorizations,
    consents,
    grants,
    codes,
    signing_keys,
    server_secrets,
    revocations,
    feed_head,
    feed_acks,
    audit_events,
    audit_seals,
    audit_waiting,
    throttles,
    known_devices,
    user_roles,
    setup_links,
    logout_notifications,
);
