-- After the rows are loaded: tokens beforehand, and statistics for the planner.

INSERT INTO base.tokens
SELECT c.name, p.id, encode(substr(hmac(convert_to(p.id, 'UTF8'), c.key, 'sha256'), 1, 16), 'hex')
FROM base.callers AS c,
    (
        SELECT id_no AS id FROM base.residents WHERE id_no IS NOT NULL
        UNION SELECT id_no FROM base.tests WHERE id_no IS NOT NULL
        UNION SELECT id_no FROM base.cases WHERE id_no IS NOT NULL
        UNION SELECT case_id FROM base.cases
    ) AS p;
CREATE INDEX ON base.tokens (name, token);
