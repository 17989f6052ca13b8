-- What an engineer would build in PostgreSQL of a hub's access gate: rows by scope, fields by mask, tokens by caller.
-- The tables belong to a steward without a login, whom row level security binds too, since views ask as their owner;
-- `current_user` is whoever asks. Wherever there was a choice, the faster way was taken.

CREATE EXTENSION pgcrypto;
CREATE ROLE steward NOLOGIN;
GRANT CREATE ON DATABASE postgres TO steward;
CREATE SCHEMA base AUTHORIZATION steward;
CREATE SCHEMA gate AUTHORIZATION steward;
CREATE ROLE "grid-worker" LOGIN;
CREATE ROLE "health-analyst" LOGIN;
CREATE ROLE "health-planner" LOGIN;
GRANT SET ON PARAMETER log_statement TO "grid-worker", "health-analyst", "health-planner";

SET ROLE steward;

-- Who may ask: where, and under which key the person in a row is named to them.
CREATE TABLE base.callers (name name PRIMARY KEY, territory text COLLATE "C" NOT NULL, key bytea NOT NULL);
INSERT INTO base.callers
VALUES ('grid-worker', '420191001001', public.gen_random_bytes(32)),
    ('health-analyst', '', public.gen_random_bytes(32)),
    ('health-planner', '', public.gen_random_bytes(32));

CREATE TABLE base.residents (
    id_no text UNIQUE,
    grid_code text COLLATE "C" NOT NULL,
    sex text NOT NULL,
    birth_date date NOT NULL,
    residence_type text NOT NULL,
    special_group text,
    community text COLLATE "C" GENERATED ALWAYS AS (substr(grid_code, 1, 12)) STORED
);
CREATE TABLE base.cases (
    case_id text PRIMARY KEY,
    id_no text,
    grid_code text COLLATE "C" NOT NULL,
    onset_date date,
    confirmed_date date NOT NULL
);
CREATE TABLE base.tests (
    test_id text PRIMARY KEY,
    id_no text,
    revision smallint NOT NULL,
    method text NOT NULL,
    result text NOT NULL
);
CREATE INDEX ON base.residents (grid_code);
CREATE INDEX ON base.residents (community);
CREATE INDEX ON base.cases (grid_code);
CREATE INDEX ON base.tests (id_no);

-- Rows by scope: the caller's division is a prefix of the row's, as a range that an index serves.
ALTER TABLE base.residents ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE base.cases ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY scope ON base.residents FOR SELECT
USING (
    grid_code >= (SELECT territory FROM base.callers WHERE name = current_user)
    AND grid_code < (SELECT territory || ':' FROM base.callers WHERE name = current_user)
);
CREATE POLICY scope ON base.cases FOR SELECT
USING (
    grid_code >= (SELECT territory FROM base.callers WHERE name = current_user)
    AND grid_code < (SELECT territory || ':' FROM base.callers WHERE name = current_user)
);

-- Tokens made beforehand, for the variant that stores them.
CREATE TABLE base.tokens (name name, id text, token text NOT NULL, PRIMARY KEY (name, id));

-- Who asked what. Committed before the question runs, it is on disk before a row goes out.
CREATE TABLE base.log (
    entry bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    caller text NOT NULL,
    statement text NOT NULL
);
CREATE FUNCTION gate.record(statement text) RETURNS void LANGUAGE sql SECURITY DEFINER
AS 'INSERT INTO base.log (caller, statement) VALUES (session_user, statement)';

-- Fields by mask, tokens computed for whoever reads them: those who read pay an HMAC a row, those who look one up pay
-- for every row.
CREATE SCHEMA casework_computed;
CREATE SCHEMA epidemiology_computed;
CREATE SCHEMA planning;
CREATE VIEW casework_computed.residents WITH (security_barrier) AS
SELECT
    encode(substr(public.hmac(convert_to(id_no, 'UTF8'), (SELECT key FROM base.callers WHERE name = current_user),
        'sha256'), 1, 16), 'hex') AS id_no,
    grid_code, sex, birth_date, residence_type, special_group
FROM base.residents;
CREATE VIEW casework_computed.cases WITH (security_barrier) AS
SELECT
    encode(substr(public.hmac(convert_to(case_id, 'UTF8'), (SELECT key FROM base.callers WHERE name = current_user),
        'sha256'), 1, 16), 'hex') AS case_id,
    encode(substr(public.hmac(convert_to(id_no, 'UTF8'), (SELECT key FROM base.callers WHERE name = current_user),
        'sha256'), 1, 16), 'hex') AS id_no,
    grid_code, date_trunc('month', onset_date::timestamp)::date AS onset_date, confirmed_date
FROM base.cases;
CREATE VIEW epidemiology_computed.residents WITH (security_barrier) AS
SELECT
    encode(substr(public.hmac(convert_to(id_no, 'UTF8'), (SELECT key FROM base.callers WHERE name = current_user),
        'sha256'), 1, 16), 'hex') AS id_no,
    grid_code, sex, date_trunc('year', birth_date::timestamp)::date AS birth_date, residence_type, special_group
FROM base.residents;
CREATE VIEW epidemiology_computed.tests WITH (security_barrier) AS
SELECT
    encode(substr(public.hmac(convert_to(id_no, 'UTF8'), (SELECT key FROM base.callers WHERE name = current_user),
        'sha256'), 1, 16), 'hex') AS id_no,
    revision, method, result
FROM base.tests;
-- Planning counts people, and here even sees whom it counts.
CREATE VIEW planning.residents WITH (security_barrier) AS
SELECT id_no, community AS grid_code, special_group FROM base.residents;

-- The same with tokens made beforehand, which both finds and reads them by an index.
CREATE SCHEMA casework_stored;
CREATE SCHEMA epidemiology_stored;
CREATE VIEW casework_stored.residents WITH (security_barrier) AS
SELECT t.token AS id_no, r.grid_code, r.sex, r.birth_date, r.residence_type, r.special_group
FROM base.residents AS r LEFT JOIN base.tokens AS t ON t.id = r.id_no AND t.name = current_user;
CREATE VIEW casework_stored.cases WITH (security_barrier) AS
SELECT
    c.token AS case_id, t.token AS id_no, r.grid_code, date_trunc('month', r.onset_date::timestamp)::date AS onset_date,
    r.confirmed_date
FROM base.cases AS r
LEFT JOIN base.tokens AS c ON c.id = r.case_id AND c.name = current_user
LEFT JOIN base.tokens AS t ON t.id = r.id_no AND t.name = current_user;
CREATE VIEW epidemiology_stored.residents WITH (security_barrier) AS
SELECT
    t.token AS id_no, r.grid_code, r.sex, date_trunc('year', r.birth_date::timestamp)::date AS birth_date,
    r.residence_type, r.special_group
FROM base.residents AS r LEFT JOIN base.tokens AS t ON t.id = r.id_no AND t.name = current_user;
CREATE VIEW epidemiology_stored.tests WITH (security_barrier) AS
SELECT t.token AS id_no, r.revision, r.method, r.result
FROM base.tests AS r LEFT JOIN base.tokens AS t ON t.id = r.id_no AND t.name = current_user;

GRANT USAGE ON SCHEMA gate TO "grid-worker", "health-analyst", "health-planner";
GRANT USAGE ON SCHEMA casework_computed, casework_stored TO "grid-worker";
GRANT USAGE ON SCHEMA epidemiology_computed, epidemiology_stored TO "health-analyst";
GRANT USAGE ON SCHEMA planning TO "health-planner";
GRANT SELECT ON ALL TABLES IN SCHEMA casework_computed, casework_stored TO "grid-worker";
GRANT SELECT ON ALL TABLES IN SCHEMA epidemiology_computed, epidemiology_stored TO "health-analyst";
GRANT SELECT ON ALL TABLES IN SCHEMA planning TO "health-planner";

RESET ROLE;
