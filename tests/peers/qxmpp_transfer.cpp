// Two clients on QXmpp send each other a file through the proxy, by QXmpp's own transfer manager (XEP-0096, XEP-0065).
//
//     qxmpp_transfer HOST PORT PROXY FILE DIRECTORY JID PASSWORD JID PASSWORD [METHOD METHOD]
//
// With methods (socks or ibb, one for each user) each sends to the address of the other at PROXY.
// It prints one JSON object: for each direction the method and the error (both numbers of QXmppTransferJob), and where the
// file landed.

#include <QCoreApplication>
#include <QFile>
#include <QTextStream>
#include <QTimer>

#include <QXmppClient.h>
#include <QXmppConfiguration.h>
#include <QXmppTransferManager.h>
#include <QXmppUtils.h>

struct User {
    QXmppClient client;
    QXmppTransferManager *transfers = new QXmppTransferManager;
    bool ready = false;
};

static void fail(const QString &why)
{
    QTextStream(stdout) << "{\"error\": \"" << why << "\"}" << Qt::endl;
    QCoreApplication::exit(1);
}

int main(int count, char **words)
{
    QCoreApplication application(count, words);
    const QStringList given = application.arguments();
    const bool proxied = given.size() == 12;
    if (given.size() != 10 && !proxied) {
        return 2;
    }
    User users[2];
    QStringList results;

    // The sender's end of a transfer may come before or after the receiver's.
    auto report = [&] {
        if (results.size() == 4) {
            QTextStream(stdout) << "{" << results.join(", ") << "}" << Qt::endl;
            application.exit(0);
        }
    };

    // Alice (0) sends to Bob (1), then Bob to Alice.
    auto send = [&](int from) {
        User &sender = users[from];
        QString to = users[1 - from].client.configuration().jid();
        if (proxied) {
            to = to.replace(to.indexOf('@'), 1, "\\40").replace("/", "@" + given[3] + "/");
        }
        auto *job = sender.transfers->sendFile(to, given[4]);
        QObject::connect(job, &QXmppTransferJob::finished, [&, job, from] {
            results << QString("\"%1\": {\"method\": %2, \"error\": %3}")
                           .arg(from == 0 ? "forth" : "back").arg(job->method()).arg(job->error());
            report();
        });
    };

    for (int i = 0; i < 2; i++) {
        User &user = users[i];
        user.client.addExtension(user.transfers);
        user.transfers->setProxy(given[3]);
        user.transfers->setProxyOnly(true);
        const bool in_band = proxied && given[10 + i] == "ibb";
        user.transfers->setSupportedMethods(in_band ? QXmppTransferJob::InBandMethod : QXmppTransferJob::SocksMethod);
        QObject::connect(&user.client, &QXmppClient::connected, [&] {
            user.ready = true;
            if (users[0].ready && users[1].ready) {
                send(0);
            }
        });
        QObject::connect(&user.client, &QXmppClient::disconnected, [] { fail("disconnected"); });
        QObject::connect(user.transfers, &QXmppTransferManager::fileReceived, [&, i](QXmppTransferJob *job) {
            auto *out = new QFile(QString("%1/%2").arg(given[5], i == 1 ? "forth" : "back"), job);
            out->open(QIODevice::WriteOnly);
            QObject::connect(job, &QXmppTransferJob::finished, [&, job, out, i] {
                out->close();
                results << QString("\"%1\": {\"method\": %2, \"error\": %3}")
                               .arg(i == 1 ? "forth received" : "back received").arg(job->method()).arg(job->error());
                report();
                if (i == 1) {
                    send(1);
                }
            });
            job->accept(out);
        });
        QXmppConfiguration configuration;
        configuration.setJid(given[6 + 2 * i] + "/qxmpp");
        configuration.setPassword(given[7 + 2 * i]);
        configuration.setHost(given[1]);
        configuration.setPort(given[2].toInt());
        configuration.setIgnoreSslErrors(true);
        configuration.setAutoReconnectionEnabled(false);
        user.client.connectToServer(configuration);
    }
    QTimer::singleShot(500000, [] { fail("it took too long"); });
    return application.exec();
}
