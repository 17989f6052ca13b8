import java.math.BigDecimal;
import java.sql.*;
import java.time.Instant;
import java.time.LocalDate;
import java.time.OffsetDateTime;
import java.util.*;

/**
 * PostgreSQL's JDBC driver: what DBeaver, DataGrip, Metabase and Spark come through. Run as a source file:
 * {@code java -cp postgresql.jar WithJdbc.java}. Prints a line a case, as harness.py does, and expects the same facts.
 */
public class WithJdbc {
    static final String ANALYST = "health-analyst", PLANNER = "pharmacy-planner", WORKER = "grid-worker";
    /** V000 was at half past seven in the morning in Asia/Shanghai. */
    static final Instant FIRST_VISIT = Instant.parse("2026-01-04T23:30:00Z");
    static final List<String> DIVISIONS = List.of("42", "4201", "420191", "420191001", "420191001001",
        "420191001001001", "420191001001002", "420191001002", "420191001002001");
    static final List<String> RESIDENTS = List.of("household_id text", "grid_code text", "id_no text", "sex text",
        "birth_date date", "residence_type text", "special_group text", "op text", "updated_at timestamptz");
    /** Runs for minutes where nobody stops it. */
    static final String SLOW = "WITH RECURSIVE k AS (SELECT CAST(level AS BIGINT) AS n FROM divisions "
        + "UNION ALL SELECT n + 1 FROM k WHERE n < 1000000000) SELECT max(n) FROM k";
    /** The authority whose certificate the hub shows; null where it speaks no TLS. */
    static final String CA = System.getenv("GRIDHUB_CA");
    static final String CLIENT = "JDBC" + (CA == null ? "" : " over TLS") + ": ";
    static int failed = 0;

    interface Case { void run() throws Exception; }

    static void check(String name, Case body) {
        try {
            body.run();
            System.out.println("PASSED " + CLIENT + name);
        } catch (Throwable error) {
            failed++;
            String where = Arrays.stream(error.getStackTrace())
                .filter(frame -> frame.getClassName().startsWith("WithJdbc"))
                .filter(frame -> !List.of("equal", "fails").contains(frame.getMethodName()))
                .map(frame -> ":" + frame.getLineNumber()).findFirst().orElse("");
            System.out.println("FAILED " + CLIENT + name + " (WithJdbc.java" + where + "): "
                + String.valueOf(error).replace('\n', '|'));
        }
    }

    static void equal(Object found, Object expected) {
        if (!Objects.equals(found, expected)) throw new AssertionError("found " + found + ", expected " + expected);
    }

    /** The SQLSTATE that something fails with. */
    static SQLException fails(Case body) throws Exception {
        try {
            body.run();
        } catch (SQLException error) {
            return error;
        }
        throw new AssertionError("no error");
    }

    static Connection connect(String caller, String... more) throws SQLException {
        Properties settings = new Properties();
        settings.put("user", caller);
        settings.put("password", System.getenv("GRIDHUB_TOKEN_" + caller.toUpperCase().replace('-', '_')));
        if (caller.equals(ANALYST)) settings.put("options", "-c purpose=epidemiology");
        if (CA != null) {
            settings.put("sslmode", "verify-full");
            settings.put("sslrootcert", CA);
        }
        for (int at = 0; at < more.length; at += 2) settings.put(more[at], more[at + 1]);
        return DriverManager.getConnection(
            "jdbc:postgresql://127.0.0.1:" + System.getenv("GRIDHUB_POSTGRES_PORT") + "/hub", settings);
    }

    /** All rows, columns joined by blanks; null where there is none. */
    static List<String> rows(ResultSet found) throws SQLException {
        List<String> rows = new ArrayList<>();
        int width = found.getMetaData().getColumnCount();
        while (found.next()) {
            List<String> row = new ArrayList<>();
            for (int at = 1; at <= width; at++) row.add(found.getString(at));
            rows.add(String.join(" ", row));
        }
        return rows;
    }

    static List<String> ask(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            return rows(statement.executeQuery(sql));
        }
    }

    /** Some columns of a list of the driver's. */
    static List<String> names(ResultSet found, String... columns) throws SQLException {
        List<String> names = new ArrayList<>();
        while (found.next()) {
            List<String> row = new ArrayList<>();
            for (String column : columns) row.add(found.getString(column));
            names.add(String.join(" ", row));
        }
        return names;
    }

    static void ask() {
        check("rows", () -> {
            try (Connection connection = connect(ANALYST)) {
                equal(ask(connection, "SELECT code FROM divisions ORDER BY code"), DIVISIONS);
                equal(ask(connection, "SELECT confirmed_date, count(*) FROM cases GROUP BY 1 ORDER BY 1"),
                    List.of("2026-01-05 8", "2026-01-06 6"));
            }
        });
        check("values", () -> {
            try (Connection connection = connect(ANALYST); Statement statement = connection.createStatement()) {
                ResultSet found = statement.executeQuery(
                    "SELECT min(visited_at), count(*), min(id_no), count(*) > 3, NULL::text FROM visits");
                found.next();
                equal(found.getObject(1, OffsetDateTime.class).toInstant(), FIRST_VISIT);
                equal(found.getLong(2), 16L);
                equal(found.getString(3).matches("[0-9a-f]{32}"), true);
                equal(found.getBoolean(4), true);
                equal(found.getString(5), null);
                equal(found.wasNull(), true);
                equal(found.getMetaData().getColumnTypeName(1), "timestamptz");
                equal(found.getMetaData().getColumnType(2), Types.BIGINT);
            }
            try (Connection connection = connect(WORKER)) {
                ResultSet found = connection.createStatement()
                    .executeQuery("SELECT temperature, needs FROM visits WHERE symptoms IS NOT NULL");
                found.next();
                equal(found.getBigDecimal(1), new BigDecimal("37.1"));
                equal(found.getString(2), null);
            }
            try (Connection connection = connect(PLANNER)) {
                equal(ask(connection, "SELECT sum(amount) FROM sales"), List.of("166.50"));
            }
        });
        check("prepared statements, binary from the first on", () -> {
            try (Connection connection = connect(ANALYST, "prepareThreshold", "-1", "binaryTransfer", "true")) {
                prepared(connection);
            }
        });
        check("prepared statements, named from the second on", () -> {
            try (Connection connection = connect(ANALYST, "prepareThreshold", "2")) {
                prepared(connection);
            }
        });
        check("prepared statements in the simple protocol", () -> {
            try (Connection connection = connect(ANALYST, "preferQueryMode", "simple")) {
                prepared(connection);
            }
        });
        check("types of parameters and columns", () -> {
            try (Connection connection = connect(ANALYST);
                PreparedStatement statement =
                    connection.prepareStatement("SELECT code, level FROM divisions WHERE level = ?")) {
                equal(statement.getParameterMetaData().getParameterTypeName(1), "int2");
                equal(statement.getMetaData().getColumnName(2), "level");
                equal(statement.getMetaData().getColumnTypeName(2), "int2");
            }
        });
        check("an answer in parts", () -> {
            try (Connection connection = connect(ANALYST)) {
                connection.setAutoCommit(false);
                try (Statement statement = connection.createStatement()) {
                    statement.setFetchSize(4);
                    equal(rows(statement.executeQuery("SELECT code FROM divisions ORDER BY code")), DIVISIONS);
                }
                connection.commit();
            }
        });
    }

    static void prepared(Connection connection) throws Exception {
        try (PreparedStatement statement =
            connection.prepareStatement("SELECT count(*), avg(level) FROM divisions WHERE level = ?")) {
            for (int level : new int[] {6, 5, 9, 6, 6, 6, 6}) {
                statement.setInt(1, level);
                ResultSet found = statement.executeQuery();
                found.next();
                equal(found.getInt(1), level == 6 ? 3 : level == 5 ? 2 : 0);
                equal(found.getDouble(2), level == 9 ? 0.0 : (double) level);
                equal(found.wasNull(), level == 9);
            }
        }
        try (PreparedStatement statement = connection.prepareStatement(
            "SELECT confirmed_date, id_no FROM cases WHERE confirmed_date >= ? ORDER BY 1")) {
            for (int again = 0; again < 7; again++) {
                statement.setObject(1, LocalDate.of(2026, 1, 6));
                ResultSet found = statement.executeQuery();
                int count = 0;
                while (found.next()) {
                    equal(found.getObject(1, LocalDate.class), LocalDate.of(2026, 1, 6));
                    count++;
                }
                equal(count, 6);
            }
        }
        try (PreparedStatement statement = connection.prepareStatement(
            "SELECT min(visited_at) FROM visits WHERE mode = ? AND visited_at <= ?")) {
            for (int again = 0; again < 7; again++) {
                statement.setString(1, "入户");
                statement.setObject(2, OffsetDateTime.parse("2026-01-05T07:30:00+08:00"));
                ResultSet found = statement.executeQuery();
                found.next();
                equal(found.getObject(1, OffsetDateTime.class).toInstant(), FIRST_VISIT);
            }
        }
        try (PreparedStatement statement =
            connection.prepareStatement("SELECT count(*) FROM divisions WHERE parent_code = ?")) {
            statement.setNull(1, Types.VARCHAR);
            equal(rows(statement.executeQuery()), List.of("0"));
        }
        try (PreparedStatement statement =
            connection.prepareStatement("SELECT count(*) FROM divisions WHERE code = ANY (?) AND level <> ALL (?)")) {
            for (int again = 0; again < 7; again++) {
                statement.setArray(1, connection.createArrayOf("text", new String[] {"42", "4201", "nowhere"}));
                statement.setArray(2, connection.createArrayOf("int4", new Integer[] {1}));
                equal(rows(statement.executeQuery()), List.of("1"));
            }
        }
    }

    static void look() {
        check("schemas and tables", () -> {
            try (Connection connection = connect(ANALYST)) {
                DatabaseMetaData data = connection.getMetaData();
                List<String> schemas = names(data.getSchemas(), "TABLE_SCHEM");
                for (String agency : List.of("cdc", "community", "health_bureau", "hospital", "pharmacy", "platform"))
                    equal(schemas.contains(agency), true);
                ResultSet tables = data.getTables(null, "community", "%", new String[] {"TABLE"});
                equal(names(tables, "TABLE_SCHEM", "TABLE_NAME", "TABLE_TYPE"),
                    List.of("community residents TABLE", "community visits TABLE"));
                equal(names(data.getTables("hub", "cdc", "cases", null), "TABLE_NAME"), List.of("cases"));
                equal(names(data.getTables(null, "community", "%", new String[] {"VIEW"}), "TABLE_NAME"), List.of());
            }
            try (Connection connection = connect(PLANNER)) {
                DatabaseMetaData data = connection.getMetaData();
                List<String> tables = names(data.getTables(null, null, "%", new String[] {"TABLE"}), "TABLE_NAME");
                equal(tables.contains("sales"), true);
                equal(tables.contains("residents"), false);
            }
        });
        check("columns", () -> {
            try (Connection connection = connect(ANALYST)) {
                DatabaseMetaData data = connection.getMetaData();
                equal(names(data.getColumns(null, "community", "residents", "%"), "COLUMN_NAME", "TYPE_NAME"), RESIDENTS);
                List<String> words = names(data.getColumns(null, "community", "residents", "id_no"), "REMARKS");
                equal(words.size() == 1 && words.get(0).contains("token"), true);
                equal(names(data.getColumns(null, "community", "residents", "phone"), "COLUMN_NAME"), List.of());
            }
        });
        check("keys and indexes", () -> {
            try (Connection connection = connect(ANALYST)) {
                DatabaseMetaData data = connection.getMetaData();
                names(data.getPrimaryKeys(null, "community", "residents"), "COLUMN_NAME");
                equal(names(data.getIndexInfo(null, "community", "residents", false, true), "INDEX_NAME"), List.of());
                equal(names(data.getImportedKeys(null, "community", "residents"), "FKCOLUMN_NAME"), List.of());
                equal(names(data.getExportedKeys(null, "community", "residents"), "FKCOLUMN_NAME"), List.of());
                equal(names(data.getCrossReference(null, "community", "residents", null, "community", "visits"),
                    "FKCOLUMN_NAME"), List.of());
                names(data.getBestRowIdentifier(null, "community", "residents", DatabaseMetaData.bestRowSession, true),
                    "COLUMN_NAME");
                names(data.getVersionColumns(null, "community", "residents"), "COLUMN_NAME");
            }
        });
        check("types", () -> {
            try (Connection connection = connect(ANALYST)) {
                List<String> types = names(connection.getMetaData().getTypeInfo(), "TYPE_NAME");
                for (String type : List.of("text", "int8", "numeric", "date", "timestamptz", "bool", "float8"))
                    equal(types.contains(type), true);
            }
        });
        check("the rest of the catalogue", () -> {
            try (Connection connection = connect(ANALYST)) {
                DatabaseMetaData data = connection.getMetaData();
                equal(names(data.getCatalogs(), "TABLE_CAT"), List.of("hub"));
                equal(names(data.getTableTypes(), "TABLE_TYPE").contains("TABLE"), true);
                names(data.getProcedures(null, null, "%"), "PROCEDURE_NAME");
                names(data.getFunctions(null, "community", "%"), "FUNCTION_NAME");
                names(data.getTablePrivileges(null, "community", "%"), "TABLE_NAME");
                names(data.getColumnPrivileges(null, "community", "residents", "%"), "COLUMN_NAME");
                names(data.getUDTs(null, null, "%", null), "TYPE_NAME");
                names(data.getClientInfoProperties(), "NAME");
                equal(data.getDatabaseProductName(), "PostgreSQL");
                equal(data.getDatabaseMajorVersion(), 16);
                equal(data.getUserName(), ANALYST);
                data.getMaxColumnNameLength();
                data.getSQLKeywords();
                equal(connection.getCatalog(), "hub");
                connection.getSchema();
                equal(connection.isValid(5), true);
            }
        });
    }

    static void refuse() {
        check("refusals", () -> {
            try (Connection connection = connect(ANALYST)) {
                SQLException error = fails(() -> ask(connection, "SELECT temperature FROM visits"));
                equal(error.getSQLState(), "42501");
                equal(error.getMessage().contains("sealed") && error.getMessage().contains("avg(temperature)"), true);
                equal(fails(() -> ask(connection, "SELECT 1 FROM nope")).getSQLState(), "42P01");
                equal(fails(() -> ask(connection, "SELECT phone FROM residents")).getSQLState(), "42703");
                fails(() -> connection.createStatement().executeUpdate("INSERT INTO cases VALUES (1)"));
                equal(ask(connection, "SELECT count(*) FROM divisions"), List.of("9"));
            }
            equal(fails(() -> connect(ANALYST, "password", "ghub_wrong")).getSQLState(), "28P01");
        });
        check("notices", () -> {
            try (Connection connection = connect(ANALYST); Statement statement = connection.createStatement()) {
                statement.executeQuery("SELECT count(temperature) FROM visits").next();
                StringBuilder words = new StringBuilder();
                for (SQLWarning warning = statement.getWarnings(); warning != null; warning = warning.getNextWarning())
                    words.append(warning.getMessage());
                equal(words.toString().contains("protected"), true);
            }
        });
        check("a time-out and a cancel", () -> {
            try (Connection connection = connect(ANALYST); Statement statement = connection.createStatement()) {
                statement.setQueryTimeout(1);
                long begin = System.nanoTime();
                equal(fails(() -> statement.executeQuery(SLOW)).getSQLState(), "57014");
                Thread stop = new Thread(() -> {
                    try {
                        Thread.sleep(500);
                        statement.cancel();
                    } catch (Exception error) {
                        System.out.println(error);
                    }
                });
                statement.setQueryTimeout(0);
                stop.start();
                equal(fails(() -> statement.executeQuery(SLOW)).getSQLState(), "57014");
                stop.join();
                equal((System.nanoTime() - begin) / 1_000_000_000L < 10, true);
                equal(ask(connection, "SELECT count(*) FROM divisions"), List.of("9"));
            }
        });
        check("transactions", () -> {
            try (Connection connection = connect(ANALYST)) {
                connection.setReadOnly(true);
                connection.setAutoCommit(false);
                connection.setTransactionIsolation(Connection.TRANSACTION_REPEATABLE_READ);
                equal(ask(connection, "SELECT count(*) FROM divisions"), List.of("9"));
                Savepoint point = connection.setSavepoint("here");
                fails(() -> ask(connection, "SELECT 1 FROM nope"));
                equal(fails(() -> ask(connection, "SELECT 1")).getSQLState(), "25P02");
                connection.rollback(point);
                equal(ask(connection, "SELECT count(*) FROM divisions"), List.of("9"));
                connection.commit();
            }
        });
        check("copy out", () -> {
            try (Connection connection = connect(ANALYST)) {
                java.io.StringWriter out = new java.io.StringWriter();
                long rows = connection.unwrap(org.postgresql.PGConnection.class).getCopyAPI()
                    .copyOut("COPY (SELECT code, level FROM divisions ORDER BY code LIMIT 2) TO STDOUT CSV", out);
                equal(rows, 2L);
                equal(out.toString(), "42,1\n4201,2\n");
            }
        });
    }

    public static void main(String[] arguments) {
        DriverManager.setLoginTimeout(10);
        ask();
        look();
        refuse();
        System.exit(failed == 0 ? 0 : 1);
    }
}
