//! The texts of commands in German. The compiler finds a missing one.

use super::Text;

/// Returns a text in German.
pub(super) const fn german(text: Text) -> &'static str {
    match text {
        Text::Keys => "Meine Schlüssel auflisten",
        Text::Lookup => "Schlüssel eines Nutzers nachschlagen",
        Text::Add => "Schlüssel hinzufügen",
        Text::Revoke => "Schlüssel widerrufen",
        Text::Prove => "Beweisen, dass ein Schlüssel mir gehört",
        Text::Settings => "Festlegen, wer meine Schlüssel sieht",
        Text::Sessions => "Meine Sitzungen auflisten oder beenden",
        Text::Export => "Alles über mich Gespeicherte ausgeben",
        Text::Erase => "Alles über mich Gespeicherte löschen",
        Text::AdminSessions => "Alle Sitzungen: auflisten oder beenden",
        Text::AdminKeys => "Schlüssel suchen",
        Text::AdminAttest => "Schlüssel eines Nutzers bestätigen",
        Text::AdminRevoke => "Schlüssel eines Nutzers widerrufen",
        Text::AdminRetire => "Konto stilllegen",
        Text::AdminBlock => "Nutzer oder Domain sperren",
        Text::AdminUnblock => "Nutzer oder Domain entsperren",
        Text::AdminStats => "Statistik",
        Text::AdminDrain => "Neue Sitzungen ablehnen oder wieder annehmen",
        Text::AdminReload => "Konfiguration neu laden",
        Text::AdminLogLevel => "Log-Stufe ändern",
        Text::AdminAudit => "Prüfprotokoll lesen",
        Text::PleaseNote => "Bitte beachten",
        Text::Error => "Fehler",
        Text::Result => "Ergebnis",
        Text::Part => "Teil, von {0}; für andere nichts wählen",
        Text::UsersAddress => "Adresse des Nutzers",
        Text::YourAddress => "Ihre Adresse",
        Text::AllUsersAddress => "Adresse des Nutzers; leer: alle Nutzer",
        Text::UserOrDomain => "Adresse des Nutzers, oder eine Domain",
        Text::TheAddress => "Die Adresse",
        Text::Why => "Grund",
        Text::WhyForBoth => "Grund, für beide Nutzer",
        Text::WhyForAdmins => "Grund, für andere Admins",
        Text::WhichKey => "Welcher Schlüssel",
        Text::WhatToDo => "Was tun",
        Text::DoProve => "Beweisen",
        Text::DoReplace => "Ersetzen",
        Text::DoRevoke => "Widerrufen",
        Text::GoOn => "Weiter mit einem Schlüssel",
        Text::MyKeys => "Meine Schlüssel",
        Text::NoKeys => "Sie haben keine Schlüssel.",
        Text::KeysOf => "Schlüssel von {0}",
        Text::NoKeysShown => "{0} zeigt Ihnen keine Schlüssel.",
        Text::EraseNote => {
            "Ihre Schlüssel, Beweise und Einstellungen werden endgültig gelöscht. Schreiben Sie zur Bestätigung Ihre eigene Adresse."
        }
        Text::NotYourAddress => "Das ist nicht Ihre eigene Adresse: nichts wurde gelöscht",
        Text::Erased => "Alles über Sie Gespeicherte ist gelöscht.",
        Text::ChooseWhatToDo => "Wählen Sie, was mit dem Schlüssel geschehen soll",
        Text::AsXml => "Als XML",
        Text::NoOtherKey => "Keinen anderen Schlüssel",
        Text::AddNote => {
            "Geben Sie das Zertifikat selbst an, als PEM oder Armor, oder nur seinen Fingerabdruck. Senden Sie niemals einen privaten Schlüssel."
        }
        Text::KindOfKey => "Art des Schlüssels",
        Text::ItsName => "Ein Name dafür",
        Text::TheCertificate => "Das Zertifikat",
        Text::OrItsPrint => "Oder sein Fingerabdruck, hexadezimal",
        Text::ItReplaces => "Er ersetzt",
        Text::AddThisKey => "Diesen Schlüssel hinzufügen?",
        Text::ComparePrints => "Vergleichen Sie die Fingerabdrücke mit denen, die Sie kennen.",
        Text::Prints => "Fingerabdrücke",
        Text::RegisteredNote => "Der Schlüssel ist eingetragen. {0}",
        Text::Registered => "Der Schlüssel ist eingetragen.",
        Text::RevokeNote => "Ein widerrufener Schlüssel gilt nie wieder.",
        Text::RevokeThisKey => "Diesen Schlüssel widerrufen?",
        Text::WillBeRevoked => "Dieser Schlüssel wird endgültig widerrufen.",
        Text::SureRevoke => "Ja, widerrufen",
        Text::TickToRevoke => {
            "Setzen Sie den Haken, um den Schlüssel zu widerrufen, oder brechen Sie ab"
        }
        Text::Revoked => "Der Schlüssel ist widerrufen.",
        Text::SignThis => "Unterschreiben Sie dies",
        Text::SignNote => {
            "Dekodieren Sie den Text unten und unterschreiben Sie die Bytes mit Ihrem Schlüssel: Ed25519, ECDSA P-256 mit SHA-256, RSA-PSS mit SHA-256 oder eine getrennte OpenPGP-Signatur. Der Text gilt 5 Minuten."
        }
        Text::ToBeSigned => "Zu unterschreiben, Base64",
        Text::TheSignature => "Die Signatur, Base64 oder Armor",
        Text::BadSignature => "Die Signatur muss Base64 oder Armor sein",
        Text::Proven => "Der Schlüssel ist bewiesen.",
        Text::ChooseKey => "Wählen Sie einen Ihrer Schlüssel",
        Text::ForEveryone => "Allen, die den Dienst nutzen dürfen",
        Text::ForLocal => "Nutzern meiner eigenen Domain",
        Text::ForListed => "Nur denen, die ich nenne",
        Text::ForNobody => "Niemandem",
        Text::SettingsNote => {
            "Nutzer, die sie nicht sehen, können Sie unter Ihrer bloßen Adresse nicht erreichen."
        }
        Text::ShownTo => "Meine Schlüssel sehen",
        Text::UsersNamed => "Nutzer, die ich nenne",
        Text::ExpectedAddresses => "Erwartet werden Adressen wie romeo@montague.lit",
        Text::TooManyNamed => "Höchstens 256 Nutzer dürfen genannt werden",
        Text::Stored => "Ihre Wahl ist gespeichert.",
        Text::NoSessions => "Sie haben zurzeit keine Sitzungen.",
        Text::MySessions => "Meine Sitzungen",
        Text::ToBeEnded => "Zu beenden",
        Text::NoneOfThem => "Keine davon",
        Text::AllOfThem => "Alle",
        Text::SessionEnds => "Die Sitzung wird beendet.",
        Text::SessionGone => "Diese Sitzung gibt es nicht mehr",
        Text::BadCertificate => "Das Zertifikat muss PEM, Armor oder Base64 sein",
        Text::TheKey => "Der Schlüssel",
        Text::UnnamedKey => "Schlüssel",
        Text::Owner => "Inhaber: {0}",
        Text::KeySource => "Herkunft: {0}",
        Text::Since => "Seit: {0}",
        Text::Until => "Bis: {0}",
        Text::Id => "Kennung: {0}",
        Text::Session => "Sitzung {0}",
        Text::With => "Mit: {0}",
        Text::FromTo => "Von: {0} an: {1}",
        Text::Brokered => "vermittelt {0}-{1}",
        Text::BeingSetUp => "vermittelt, im Aufbau",
        Text::Transfer => "SOCKS5-Übertragung",
        Text::Seconds => "Sekunden: {0}",
        Text::Bytes => "Bytes: {0}",
        Text::ExpectedAddress => "Erwartet wird eine Adresse wie romeo@montague.lit",
        Text::ExpectedAddressOrNothing => {
            "Erwartet wird eine Adresse wie romeo@montague.lit, oder nichts"
        }
        Text::ExpectedAddressOrDomain => {
            "Erwartet wird eine Adresse wie romeo@montague.lit, oder eine Domain"
        }
        Text::Reloaded => "Die Konfiguration ist neu geladen.",
        Text::ReloadedRestart => {
            "Die Konfiguration ist neu geladen. Diese Einstellungen wirken erst nach einem Neustart: {0}."
        }
        Text::NothingChanged => "Nichts wurde geändert: {0}",
        Text::SomeSessions => "Sitzungen",
        Text::SessionsOf => "{0} Sitzungen, die älteste zuerst.",
        Text::NoSuchSessions => "Solche Sitzungen gibt es zurzeit nicht.",
        Text::ChooseSessions => "Wählen Sie die Sitzungen, die enden sollen, oder brechen Sie ab",
        Text::SessionNoLonger => "Die Sitzung gibt es nicht mehr",
        Text::SessionsEnded => "Beendete Sitzungen: {0}.",
        Text::Query => "Teil einer Adresse, Fingerabdruck oder Kennung",
        Text::ExpectedQuery => {
            "Erwartet wird ein Teil einer Adresse, ein Fingerabdruck oder die Kennung eines Schlüssels"
        }
        Text::KeysFound => "Gefundene Schlüssel: {0}.",
        Text::KeysFoundMore => {
            "Gefundene Schlüssel: {0}. Mehr Nutzer passen: geben Sie einen längeren Teil der Adresse an."
        }
        Text::FoundKeys => "Schlüssel",
        Text::AttestNote => "Sie bürgen dafür, dass der Schlüssel seinem Inhaber gehört.",
        Text::KeyId => "Kennung, wie die Suche sie zeigt",
        Text::RevokedAlready => "Der Schlüssel ist schon widerrufen",
        Text::ThisKey => "Dieser Schlüssel?",
        Text::WillBeAttested => "Dieser Schlüssel wird bestätigt.",
        Text::Sure => "Ja",
        Text::TickTheBox => "Setzen Sie den Haken, oder brechen Sie ab",
        Text::Attested => "Der Schlüssel ist bestätigt.",
        Text::NoSuchKey => "Diesen Schlüssel gibt es nicht",
        Text::RetireNote => {
            "Für ein Konto, das auf seinem Server gelöscht wurde. Alles über seinen Inhaber Gespeicherte wird gelöscht, und niemand zeigt der Adresse mehr Schlüssel. Wer die Adresse später hat, beginnt neu; was für sie widerrufen wurde, bleibt widerrufen."
        }
        Text::SureRetire => "Das Konto gehört nicht mehr seinem Inhaber",
        Text::YourOwnAccount => "Das ist Ihr eigenes Konto",
        Text::Retired => {
            "{0} ist stillgelegt. Gelöschte Schlüssel: {1}. Nutzer, die ihr keine Schlüssel mehr zeigen: {2}. Beendete Sitzungen: {3}."
        }
        Text::BlockNote => {
            "Sitzungen enden sofort, und keine anderen beginnen, auch nach einem Neustart."
        }
        Text::LockOutAll => {
            "Das würde Sie selbst aussperren: sperren Sie Adressen und Domains einzeln"
        }
        Text::ExpectedNoPattern => {
            "Erwartet wird eine Adresse oder eine ganze Domain, kein Muster: sperren Sie jede Domain"
        }
        Text::LockOut => "Das würde Sie selbst aussperren",
        Text::BlockedNow => "{0} ist jetzt gesperrt. Beendete Sitzungen: {1}.",
        Text::BlockedAlready => "{0} war schon gesperrt. Beendete Sitzungen: {1}.",
        Text::NobodyBlocked => "Niemand ist gesperrt.",
        Text::InConfiguration => "{0} (in der Konfiguration)",
        Text::Blocked => "Gesperrt",
        Text::BlockedByFile => {
            "{0} ist durch die Konfiguration gesperrt: nehmen Sie den Eintrag aus [access] blocked und laden Sie neu"
        }
        Text::StillBlockedByFile => {
            "{0} ist noch durch die Konfiguration gesperrt: nehmen Sie den Eintrag aus [access] blocked und laden Sie neu."
        }
        Text::ChooseToUnblock => "Wählen Sie den Nutzer oder die Domain",
        Text::Unblocked => "{0} ist nicht mehr gesperrt.",
        Text::Version => "Version",
        Text::Uptime => "Sekunden seit dem Start",
        Text::BrokeredSessions => "Vermittelte Sitzungen",
        Text::Transfers => "SOCKS5-Übertragungen",
        Text::Waiting => "Wartende SOCKS5-Übertragungen",
        Text::Streams => "Ströme seit dem Start",
        Text::BytesRelayed => "Weitergeleitete Bytes seit dem Start",
        Text::Database => "Datenbank",
        Text::Connections => "Verbindungen zu ihr",
        Text::ConnectionCounts => "{0} offen, {1} frei, max. {2}",
        Text::NewSessions => "Neue Sitzungen",
        Text::LogLevel => "Log-Stufe",
        Text::Refused => {
            "Neue Sitzungen werden jetzt abgelehnt; laufende gehen in jedem Fall weiter. Um das später zu beenden, führen Sie diesen Befehl noch einmal aus."
        }
        Text::Accepted => {
            "Neue Sitzungen werden jetzt angenommen; laufende gehen in jedem Fall weiter. Um das später zu beenden, führen Sie diesen Befehl noch einmal aus."
        }
        Text::Refuse => "Neue Sitzungen ablehnen",
        Text::Accept => "Neue Sitzungen (wieder) annehmen",
        Text::NowRefused => "Neue Sitzungen werden ab jetzt abgelehnt.",
        Text::NowAccepted => "Neue Sitzungen werden angenommen.",
        Text::ChooseRefuseOrAccept => {
            "Wählen Sie, ob neue Sitzungen abgelehnt oder angenommen werden"
        }
        Text::LevelConfigured => "Sie ist jetzt {0}, wie konfiguriert.",
        Text::LevelChosen => "Sie ist jetzt {0}; die Konfiguration hat eine andere.",
        Text::AsConfigured => "Wie konfiguriert",
        Text::Level => "Stufe, bis zur Änderung oder zum Programmende",
        Text::ChooseLevel => "Wählen Sie eine der Stufen",
        Text::LevelNow => "Die Log-Stufe ist jetzt {0}.",
        Text::AuditLog => "Prüfprotokoll",
        Text::AuditPage => "Prüfprotokoll, Seite {0}",
        Text::NoEntries => "Es gibt keine Einträge.",
        Text::By => "Von: {0}",
        Text::ByAdmin => "Von: Admin {0}",
        Text::ByOffline => "Von: offline",
        Text::ByForgotten => "Von: einem vergessenen Nutzer",
        Text::EntryKey => "Schlüssel: {0}",
    }
}
