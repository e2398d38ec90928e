import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.sql.Statement;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.errors.RebalanceInProgressException;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * A consumer of flinks-bridge's topics that works on each webhook once.
 *
 * <pre>java -jar consumer.jar --brokers HOST:PORT --group NAME --store FILE flinks.kyc flinks.accounts-detail</pre>
 *
 * Delivery is at least once, so a record may come twice: Flinks tried again, Kafka was away for a moment, or this process
 * died after its work and before its commit. Work and the record's {@code ce_id} are therefore written in one transaction
 * of one database: either both are there or neither is, whenever the process dies. The offset is committed after that;
 * if that is lost, the record comes again and its {@code ce_id} is found. With several processes in the group the store
 * must be one that they share, such as PostgreSQL with {@code INSERT ... ON CONFLICT DO NOTHING}; SQLite stands for it.
 */
public final class ExampleConsumer {
    /**
     * Flinks' last attempt comes after 4.5 hours; a redriven record after weeks: topics keep records for 14 days, dead
     * letters for 30.
     */
    private static final String KEEP = "-45 days";
    private static final ObjectMapper JSON = new ObjectMapper();

    /** A record that no further attempt makes better. Says why, in words without personal data. */
    private static final class Poison extends Exception {
        Poison(String why) {
            super(why);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = new HashMap<>();
        List<String> topics = new ArrayList<>();
        for (int i = 0; i < arguments.length; i++) {
            if (arguments[i].startsWith("--") && i + 1 < arguments.length) {
                options.put(arguments[i].substring(2), arguments[++i]);
            } else {
                topics.add(arguments[i]);
            }
        }
        Map<String, Object> settings = new HashMap<>();
        settings.put("bootstrap.servers", options.get("brokers"));
        settings.put("group.id", options.get("group"));
        settings.put("auto.offset.reset", "earliest");
        settings.put("enable.auto.commit", false);
        settings.put("session.timeout.ms", 15_000); // how long the partitions of a killed process wait for another
        // Redriven records are written in transactions, and Java's default reads those that were given up, too.
        settings.put("isolation.level", "read_committed");
        // Values reach 32 MiB, those of attributes 64. A larger record than a limit is fetched all the same; these bound
        // what is fetched ahead, and how much is worked on between two polls (max.poll.interval.ms).
        settings.put("fetch.max.bytes", 32 << 20);
        settings.put("max.partition.fetch.bytes", 1 << 20);
        settings.put("max.poll.records", 100);

        Thread main = Thread.currentThread();
        try (Connection store = open(options.get("store"));
                var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new ByteArrayDeserializer())) {
            // SIGTERM: poll() is left with a WakeupException, and the process ends when this method has.
            Runtime.getRuntime().addShutdownHook(new Thread(() -> {
                consumer.wakeup();
                try {
                    main.join();
                } catch (InterruptedException e) {
                    Thread.currentThread().interrupt();
                }
            }));
            consumer.subscribe(topics);
            while (true) {
                ConsumerRecords<String, byte[]> records = consumer.poll(Duration.ofSeconds(1));
                for (ConsumerRecord<String, byte[]> record : records) {
                    String outcome = work(store, record);
                    // Ids and places alone: the rest is personal data.
                    System.out.printf("%s %s %d %d%n", outcome, record.topic(), record.partition(), record.offset());
                }
                try {
                    consumer.commitSync();
                } catch (RebalanceInProgressException e) {
                    // Whoever has the partition next gets the records again, and finds their ids.
                }
            }
        } catch (WakeupException e) {
            // The end. What was worked on and not committed comes again, and its ids are found.
        }
    }

    private static Connection open(String file) throws SQLException {
        Connection store = DriverManager.getConnection("jdbc:sqlite:" + file);
        try (Statement statement = store.createStatement()) {
            statement.execute("CREATE TABLE IF NOT EXISTS processed (ce_id TEXT PRIMARY KEY, ce_source TEXT, ce_type TEXT,"
                    + " ce_requestid TEXT, at TEXT)");
            statement.execute("CREATE TABLE IF NOT EXISTS work (ce_id TEXT, login_id TEXT, ce_type TEXT, parts INTEGER)");
            statement.execute("CREATE TABLE IF NOT EXISTS set_aside (topic TEXT, part INTEGER, position INTEGER,"
                    + " reason TEXT, PRIMARY KEY (topic, part, position))");
        }
        update(store, "DELETE FROM processed WHERE at < datetime('now', ?)", KEEP);
        store.setAutoCommit(false);
        return store;
    }

    /** One record in one transaction, or what is wrong with it. Any other failure ends the process: it comes again. */
    private static String work(Connection store, ConsumerRecord<String, byte[]> record) throws SQLException {
        try {
            String outcome = handle(store, record);
            store.commit();
            return outcome;
        } catch (Poison poison) {
            // Whoever comes behind it must not wait; a person looks at its place.
            store.rollback();
            update(store, "INSERT OR IGNORE INTO set_aside VALUES (?, ?, ?, ?)", record.topic(), record.partition(),
                    record.offset(), poison.getMessage());
            store.commit();
            return "set aside";
        }
    }

    private static String handle(Connection store, ConsumerRecord<String, byte[]> record) throws SQLException, Poison {
        if (record.value() == null || record.value().length == 0) {
            return "tombstone"; // on flinks.login-links: delete what is kept of this key
        }
        if (header(record, "ce_httpstatuscode") != null || header(record, "ce_flinkscode") != null) {
            return "no result"; // the body tells of an error at Flinks
        }
        String id = header(record, "ce_id");
        String type = header(record, "ce_type");
        if (id == null) {
            throw new Poison("no ce_id");
        }
        // First the id: it takes the row's lock, so that of two processes with the same record one waits for the other.
        // Whether Flinks' retries repeat the bytes is not known. If yours must not be worked on twice even then, make
        // (ce_source, ce_type, ce_requestid) UNIQUE.
        int added = update(store, "INSERT OR IGNORE INTO processed VALUES (?, ?, ?, ?, datetime('now'))", id,
                header(record, "ce_source"), type, header(record, "ce_requestid"));
        if (added == 0) {
            return "duplicate";
        }
        JsonNode body;
        try {
            body = JSON.readTree(record.value());
        } catch (IOException e) {
            throw new Poison("not JSON");
        }
        if (!body.isObject()) {
            throw new Poison("no JSON object");
        }
        // The work. Members may be absent, null or something else, and others may be there.
        int parts = body.path("com.flinks.accounts-detail".equals(type) ? "Accounts" : "Holders").size();
        update(store, "INSERT INTO work VALUES (?, ?, ?, ?)", id, record.key(), type, parts);
        return "done";
    }

    private static String header(ConsumerRecord<?, ?> record, String name) {
        Header header = record.headers().lastHeader(name);
        return header == null || header.value() == null ? null : new String(header.value(), StandardCharsets.UTF_8);
    }

    private static int update(Connection store, String sql, Object... values) throws SQLException {
        try (var statement = store.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) {
                statement.setObject(i + 1, values[i]);
            }
            return statement.executeUpdate();
        }
    }
}
