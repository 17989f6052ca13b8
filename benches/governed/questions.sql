-- 01 cases by day and district
SELECT confirmed_date, substr(grid_code,1,6) AS district, count(DISTINCT case_id) AS n FROM cases GROUP BY 1,2 ORDER BY 1,2

-- 02 seven-day moving average
WITH d AS (SELECT confirmed_date AS day, count(DISTINCT case_id) AS n FROM cases GROUP BY 1) SELECT day, n, avg(n) OVER (ORDER BY day ROWS BETWEEN 6 PRECEDING AND CURRENT ROW) AS ma7 FROM d ORDER BY day

-- 03 test positivity by day
WITH r AS (SELECT *, row_number() OVER (PARTITION BY test_id ORDER BY revision DESC) AS k FROM tests) SELECT CAST(sampled_at AS DATE) AS day, count(*) AS tests, avg(CASE WHEN result='阳性' THEN 1.0 ELSE 0.0 END) AS positivity FROM r WHERE k=1 GROUP BY 1 ORDER BY 1

-- 04 highest attack rates
WITH p AS (SELECT substr(grid_code,1,12) AS com, count(DISTINCT id_no) AS pop FROM residents GROUP BY 1), c AS (SELECT substr(grid_code,1,12) AS com, count(DISTINCT case_id) AS n FROM cases GROUP BY 1) SELECT p.com, n, pop, 1000.0*n/pop AS per_1000 FROM p JOIN c ON p.com=c.com WHERE pop>=500 ORDER BY per_1000 DESC, 1 LIMIT 10

-- 05 orders without a visit
SELECT DISTINCT q.grid_code FROM quarantine_orders q LEFT JOIN (SELECT DISTINCT grid_code FROM visits WHERE visited_at >= TIMESTAMP '2026-01-17 00:00:00') v ON q.grid_code=v.grid_code WHERE q.end_date >= DATE '2026-01-18' AND v.grid_code IS NULL

-- 06 onset to confirmation
SELECT substr(grid_code,1,6) AS district, count(*) AS n, median((date_part('epoch', confirmed_date) - date_part('epoch', onset_date))/86400) AS med_days, max((date_part('epoch', confirmed_date) - date_part('epoch', onset_date))/86400) AS max_days FROM cases WHERE onset_date IS NOT NULL GROUP BY 1 ORDER BY 1

-- 07 laboratory turn-around
SELECT lab_uscc, count(*) AS n, avg((date_part('epoch', reported_at) - date_part('epoch', sampled_at))/3600) AS hours FROM tests WHERE revision=1 GROUP BY 1 ORDER BY hours DESC

-- 08 contacts not tested
SELECT substr(q.grid_code,1,9) AS street, count(DISTINCT q.id_no) AS untested FROM quarantine_orders q WHERE q.reason='密接' AND q.end_date >= DATE '2026-01-18' AND NOT EXISTS (SELECT 1 FROM tests t WHERE t.id_no=q.id_no AND t.sampled_at >= TIMESTAMP '2026-01-15 00:00:00') GROUP BY 1 ORDER BY 2 DESC

-- 09 households with two cases
SELECT substr(r.household_id,1,15) AS grid, count(*) AS households FROM (SELECT household_id, count(DISTINCT c.case_id) AS n FROM cases c JOIN residents r ON r.id_no=c.id_no GROUP BY 1 HAVING count(DISTINCT c.case_id)>=2) r GROUP BY 1 ORDER BY 2 DESC

-- 10 household attack rate
WITH h AS (SELECT r.household_id, count(DISTINCT c.case_id) AS cases, count(DISTINCT r.id_no) AS members FROM residents r LEFT JOIN cases c ON c.id_no=r.id_no GROUP BY 1) SELECT sum(cases-1)*1.0/sum(members-1) AS sar FROM h WHERE cases>=1 AND members>1

-- 11 early warning from sales
WITH d AS (SELECT store_uscc, CAST(sold_at AS DATE) AS day, sum(qty) AS q FROM sales WHERE category='退热' GROUP BY 1,2), w AS (SELECT *, avg(q) OVER (PARTITION BY store_uscc ORDER BY day ROWS BETWEEN 7 PRECEDING AND 1 PRECEDING) AS before FROM d) SELECT store_uscc, day, q, before FROM w WHERE q > 2*before ORDER BY day, q DESC

-- 12 buyers not tested
SELECT substr(r.grid_code,1,12) AS com, count(DISTINCT s.buyer_id_no) AS n FROM sales s JOIN residents r ON r.id_no=s.buyer_id_no WHERE s.category='退热' AND NOT EXISTS (SELECT 1 FROM tests t WHERE t.id_no=s.buyer_id_no AND t.sampled_at >= s.sold_at) GROUP BY 1 ORDER BY 2 DESC

-- 13 mean temperature, protected
SELECT substr(grid_code,1,12) AS com, count(DISTINCT id_no) AS n, avg(temperature) AS mean FROM visits GROUP BY 1

-- 14 coverage over sixty
WITH d AS (SELECT id_no, max(dose_no) AS doses FROM vaccinations GROUP BY 1) SELECT substr(r.grid_code,1,9) AS street, count(DISTINCT r.id_no) AS elderly, count(DISTINCT CASE WHEN d.doses>=3 THEN r.id_no END)*1.0/count(DISTINCT r.id_no) AS coverage FROM residents r LEFT JOIN d ON d.id_no=r.id_no WHERE r.birth_date <= DATE '1965-12-31' GROUP BY 1 ORDER BY 3

-- 15 cases by doses
WITH d AS (SELECT id_no, max(dose_no) AS doses FROM vaccinations GROUP BY 1), p AS (SELECT DISTINCT id_no FROM residents) SELECT coalesce(d.doses,0) AS doses, count(*) AS people, count(c.id_no)*1000.0/count(*) AS per_1000 FROM p LEFT JOIN d ON d.id_no=p.id_no LEFT JOIN (SELECT DISTINCT id_no FROM cases) c ON c.id_no=p.id_no GROUP BY 1 ORDER BY 1

-- 16 known severity, protected
SELECT substr(grid_code,1,9) AS street, count(severity) AS n, count(DISTINCT case_id) AS known FROM cases GROUP BY 1

-- 17 sources of three and more
SELECT source_case_id, count(DISTINCT case_id) AS secondary FROM cases WHERE source_case_id IS NOT NULL GROUP BY 1 HAVING count(DISTINCT case_id)>=3 ORDER BY 2 DESC, 1

-- 18 transmission chain
WITH RECURSIVE k AS (SELECT case_id, 0 AS depth FROM (SELECT min(source_case_id) AS case_id FROM cases) i UNION ALL SELECT c.case_id, k.depth+1 FROM cases c JOIN k ON c.source_case_id=k.case_id WHERE k.depth<10) SELECT depth, count(DISTINCT case_id) AS n FROM k GROUP BY 1 ORDER BY 1

-- 19 old and alone near cases
SELECT grid_code, count(DISTINCT id_no) AS n FROM residents WHERE special_group IN ('独居老人','高龄老人') AND substr(grid_code,1,12) IN (SELECT substr(grid_code,1,12) FROM cases WHERE confirmed_date >= DATE '2026-01-12') GROUP BY 1 ORDER BY 2 DESC

-- 20 needs of the day
SELECT substr(grid_code,1,9) AS street, needs, count(*) AS n FROM visits WHERE visited_at >= TIMESTAMP '2026-01-18 00:00:00' AND needs IS NOT NULL GROUP BY 1,2 ORDER BY 1,3 DESC

-- 21 orders that end
SELECT substr(grid_code,1,9) AS street, kind, count(DISTINCT id_no) AS n FROM quarantine_orders WHERE end_date = DATE '2026-01-19' GROUP BY 1,2 ORDER BY 1,2

-- 22 share tested
WITH t AS (SELECT DISTINCT id_no FROM tests WHERE sampled_at >= TIMESTAMP '2026-01-16 00:00:00') SELECT substr(r.grid_code,1,12) AS com, count(DISTINCT t.id_no)*1.0/count(DISTINCT r.id_no) AS share FROM residents r LEFT JOIN t ON t.id_no=r.id_no GROUP BY 1 ORDER BY 2

-- 23 busy grid workers
WITH w AS (SELECT worker_id, CAST(visited_at AS DATE) AS day, count(*) AS n FROM visits GROUP BY 1,2) SELECT worker_id, day, n FROM w WHERE n > 2*(SELECT avg(n) FROM w) ORDER BY n DESC

-- 24 residents by district
SELECT d.name, count(DISTINCT r.id_no) AS people, count(DISTINCT substr(r.grid_code,1,15)) AS grids FROM residents r JOIN divisions d ON d.code = substr(r.grid_code,1,6) GROUP BY 1 ORDER BY 2 DESC

-- 25 rows without an id
SELECT 'visits' AS dataset, avg(CASE WHEN id_no IS NULL OR id_no='' THEN 1.0 ELSE 0.0 END) AS missing FROM visits UNION ALL SELECT 'tests', avg(CASE WHEN id_no IS NULL OR id_no='' THEN 1.0 ELSE 0.0 END) FROM tests UNION ALL SELECT 'sales', avg(CASE WHEN buyer_id_no IS NULL OR buyer_id_no='' THEN 1.0 ELSE 0.0 END) FROM sales
